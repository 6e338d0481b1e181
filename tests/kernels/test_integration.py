"""The compiled operators in PyTorch: opcheck, threads, the choice of backend, and errors of wrong calls."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import kernel_oracle as oracle
import pytest
import torch
from torch import Tensor

from jrt_eval import kernels
from jrt_eval.errors import UserError
from jrt_eval.kernels import TaylorState, WindowState, checks, compiled, dispatch


def normal(*shape: int, grad: bool = False) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_(grad)


def operators() -> dict[str, tuple[Any, ...]]:
    """Arguments for every torch.ops.jrt_eval operator."""
    q, k, v = normal(2, 70, 2, 4), normal(2, 70, 2, 4), normal(2, 70, 2, 9)
    kv, k_sum = normal(2, 2, 15, 9), torch.rand(2, 2, 15)
    mask = torch.arange(70) < torch.tensor([[70], [40]])
    ring = normal(2, 5, 2, 9)
    seen = torch.tensor([3, 9])
    a = normal(2, 8, 12)
    return {
        "taylor_linear_attention": (q, k, v, kv, k_sum, mask, torch.tensor([0.5, 0.9])),
        "encode_prefix": (k, v, mask),
        "encode_prefix_backward": (k, v, mask, kv, k_sum),
        "taylor_linear_attention_step": (q[:, 0], k[:, 0], v[:, 0], kv.clone(), k_sum.clone(), None),
        "causal_dot_product": (q, k, v, normal(2, 2, 4, 9)),
        "sliding_window_attention": (v, v, v, 5, ring, ring.clone(), seen, torch.tensor([70, 2])),
        "sliding_window_attention_step": (v[:, 0], v[:, 0], v[:, 0], ring.clone(), ring.clone(), seen.clone()),
        "short_conv": (a, a, normal(12, 1, 3), normal(12), normal(2, 2, 12), torch.tensor([8, 1]), True),
        "short_conv_step": (a[:, 0], a[:, 0], normal(12, 1, 3), None, normal(2, 2, 12), True),
    }


@pytest.mark.parametrize("name", list(operators()))
def test_opcheck(cpu: str, name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.jrt_eval, name).default, operators()[name])


def test_opcheck_with_gradients(cpu: str) -> None:
    q, k, v = normal(1, 66, 2, 4, grad=True), normal(1, 66, 2, 4, grad=True), normal(1, 66, 2, 9, grad=True)
    kv, k_sum = normal(1, 2, 15, 9, grad=True), torch.full((1, 2, 15), 3.0).requires_grad_()
    torch.library.opcheck(torch.ops.jrt_eval.taylor_linear_attention.default, (q, k, v, kv, k_sum, None, None))
    torch.library.opcheck(torch.ops.jrt_eval.encode_prefix.default, (k, v, None))
    torch.library.opcheck(torch.ops.jrt_eval.causal_dot_product.default, (q, k, v, normal(1, 2, 4, 9, grad=True)))


def mix(x: Tensor) -> tuple[Tensor, ...]:
    """All prefills and steps, as a model calls them."""
    q, k, v = x[..., :4], x[..., 4:8], x[..., 8:]
    state = kernels.encode_prefix(k[:, :10], v[:, :10])
    y, state = kernels.taylor_linear_attention(q, k, v, state)
    w, ring = kernels.sliding_window_attention(v, v, v, 5)
    weight = torch.ones(v.shape[2] * v.shape[3], 3)
    c, past = kernels.short_conv(v.flatten(2), weight, gate=y.flatten(2))
    z, _ = kernels.causal_dot_product(q, k, v)
    with torch.no_grad():
        step = kernels.taylor_linear_attention_step(
            q[:, 0], k[:, 0], v[:, 0], TaylorState(state.kv.detach().clone(), state.k.detach().clone())
        )
        held = WindowState(ring.k.detach().clone(), ring.v.detach().clone(), ring.length.clone())
        step = step + kernels.sliding_window_attention_step(v[:, 0], v[:, 0], v[:, 0], held)
        last = past.detach().clone()
        gate = kernels.short_conv_step(c[:, 0], weight, None, last, gate=c[:, 0])
    return y, w, c, z, step, gate, held.length


def test_compiles_as_one_graph(cpu: str) -> None:
    x = normal(2, 30, 2, 20)
    fast = torch.compile(mix, fullgraph=True, backend="aot_eager")
    for got, want in zip(fast(x), mix(x), strict=True):
        torch.testing.assert_close(got, want)


def test_compiles_with_gradients(cpu: str) -> None:
    x = normal(2, 30, 2, 20, grad=True)

    def loss(x: Tensor) -> Tensor:
        y, w, c, z, *_ = mix(x)
        return y.square().sum() + w.square().sum() + c.square().sum() + z.square().sum()

    (want,) = torch.autograd.grad(loss(x), x)
    (got,) = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(x), x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("batch", "heads"), [(1, 1), (1, 3), (2, 8)])
def test_threads_change_no_bit(cpu: str, threads: Callable[[int], None], batch: int, heads: int) -> None:
    q, k, v = normal(batch, 700, heads, 16), normal(batch, 699, heads, 16), normal(batch, 700, heads, 72)
    k = torch.cat([k, q[:, :1]], 1).requires_grad_()
    seen = []
    for count in (1, 2, 2, 4, 5):
        threads(count)
        y, state = kernels.taylor_linear_attention(q, k, v, backend=cpu)
        (grad,) = torch.autograd.grad(y.sum(), k)
        w, _ = kernels.sliding_window_attention(v, v, v, 65, backend=cpu)
        seen.append((y, state.kv, state.k, grad, w))
    for run in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, seen[0], strict=True))


@pytest.mark.parametrize("count", [1, 2])
def test_heads_walked_together_are_those_walked_alone(cpu: str, threads: Callable[[int], None], count: int) -> None:
    """Seven heads, four of which fit the cache: the last group is smaller."""
    q, k, v = normal(2, 150, 7, 16), normal(2, 151, 7, 16)[:, 1:], normal(2, 150, 7, 64)
    state = TaylorState(normal(2, 7, 153, 64), torch.rand(2, 7, 153) + 50)
    mask = torch.rand(2, 150, generator=torch.Generator().manual_seed(0)) < 0.8
    decay = torch.linspace(0.9, 0.999, 7)
    threads(count)
    y, (kv, k_sum) = kernels.taylor_linear_attention(q, k, v, state, mask=mask, decay=decay, backend=cpu)
    for h in range(7):
        at = slice(h, h + 1)
        one = TaylorState(state.kv[:, at], state.k[:, at])
        threads(1)
        y1, (kv1, k1) = kernels.taylor_linear_attention(
            q[:, :, at], k[:, :, at], v[:, :, at], one, mask=mask, decay=decay[at], backend=cpu
        )
        assert torch.equal(y[:, :, at], y1)
        assert torch.equal(kv[:, at], kv1)
        assert torch.equal(k_sum[:, at], k1)


@pytest.mark.parametrize("decayed", [False, True])
@pytest.mark.parametrize("heads", [1, 3])
def test_more_threads_than_heads_share_the_sequence(
    cpu: str, threads: Callable[[int], None], heads: int, decayed: bool
) -> None:
    q, k, v = normal(1, 2600, heads, 16), normal(1, 2601, heads, 16)[:, 1:], normal(1, 2600, heads, 24)
    state = TaylorState(normal(1, heads, 153, 24), torch.rand(1, heads, 153) + 50)
    mask = torch.rand(1, 2600, generator=torch.Generator().manual_seed(0)) < 0.8
    decay = torch.linspace(0.99, 0.9999, heads) if decayed else None

    def run(count: int) -> list[Tensor]:
        threads(count)
        y, (kv, k_sum) = kernels.taylor_linear_attention(q, k, v, state, mask=mask, decay=decay, backend=cpu)
        z, product = kernels.causal_dot_product(q, k, v, backend=cpu)
        encoded = kernels.encode_prefix(k, v, mask, backend=cpu)
        return [y, kv, k_sum, z, product, *encoded]

    one, many, again = run(1), run(24), run(24)
    assert all(torch.equal(a, b) for a, b in zip(many, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(many, one, strict=True)), "the sequence was not shared out"
    for got, want in zip(many, one, strict=True):
        assert oracle.error(got, want) < 1e-5


def test_other_python_threads_run_meanwhile(cpu: str) -> None:
    q, v = normal(1, 40000, 2, 16), normal(1, 40000, 2, 64)
    started, finished = threading.Event(), []

    def work() -> None:
        started.set()
        kernels.taylor_linear_attention(q, q, v, backend=cpu)
        finished.append(True)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # so that only the kernel releases the interpreter
    try:
        worker = threading.Thread(target=work)
        worker.start()
        started.wait()
        meanwhile = not finished
        worker.join()
    finally:
        sys.setswitchinterval(interval)
    assert meanwhile
    assert finished


def run_python(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def test_the_environment_forces_an_instruction_set(cpu: str) -> None:
    code = "from jrt_eval import kernels; print(kernels.status().isa)"
    assert run_python(code, JRT_EVAL_ISA="portable") == "portable"


def test_an_unknown_instruction_set_falls_back_and_says_so() -> None:
    code = """
import logging, torch
logging.basicConfig(level="INFO", format="%(message)s", stream=__import__("sys").stdout)
from jrt_eval import kernels
from jrt_eval.errors import UserError
x = torch.ones(1, 3, 1, 4)
for _ in range(2):
    kernels.taylor_linear_attention(x, x, x)
try:
    kernels.taylor_linear_attention(x, x, x, backend="cpu")
except UserError as error:
    print("error:", error)
"""
    lines = run_python(code, JRT_EVAL_ISA="sse9").splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("kernels on cpu: PyTorch, not 'cpu': JRT_EVAL_ISA=sse9 is not available")
    assert lines[1].startswith("error: backend 'cpu' cannot run here: JRT_EVAL_ISA=sse9")


def test_a_stale_or_missing_module_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "import_module", lambda _: SimpleNamespace(ABI=compiled.ABI - 1))
    module, _, reason = compiled._load()
    assert module is None
    assert "another version" in str(reason)
    assert "reinstall" in str(reason)

    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(compiled, "import_module", absent)
    module, _, reason = compiled._load()
    assert module is None
    assert "does not import" in str(reason)
    monkeypatch.setattr(compiled, "_module", None)
    monkeypatch.setattr(compiled, "missing", reason)
    found = kernels.status()
    assert not found.compiled
    assert "reinstall" in found.mend


def test_status(cpu: str) -> None:
    found = kernels.status()
    assert found.compiled
    assert found.isa in ("avx512", "avx2", "portable")
    assert found.isa in found.text


def test_auto_takes_the_reference_for_float64() -> None:
    x = torch.ones(1, 3, 1, 4, dtype=torch.float64)
    y, state = kernels.taylor_linear_attention(x, x, x)
    assert y.dtype == state.kv.dtype == torch.float64


def test_the_choice_is_said_once(cpu: str, caplog: pytest.LogCaptureFixture) -> None:
    dispatch._logged.clear()
    dispatch._chosen.clear()
    x = torch.ones(1, 3, 1, 4)
    with caplog.at_level(logging.INFO, logger="jrt_eval.kernels"):
        kernels.taylor_linear_attention(x, x, x)
        kernels.causal_dot_product(x, x, x)
    assert [record.message for record in caplog.records] == ["kernels on cpu: compiled ('cpu')"]


x4, x3 = torch.ones(2, 5, 3, 4), torch.ones(2, 3, 4)
WRONG: list[tuple[str, Callable[[], object]]] = [
    ("unknown backend 'cpp'", lambda: kernels.taylor_linear_attention(x4, x4, x4, backend="cpp")),
    ("did you mean 'torch'", lambda: kernels.taylor_linear_attention(x4, x4, x4, backend="troch")),
    ("that agree", lambda: kernels.taylor_linear_attention(x4, x4[:, 1:], x4)),
    ("that agree", lambda: kernels.taylor_linear_attention_step(x3, x3[:1], x3, TaylorState(x4, x4))),
    ("different dtypes", lambda: kernels.causal_dot_product(x4.half(), x4, x4)),
    ("not supported", lambda: kernels.causal_dot_product(x4.int(), x4.int(), x4.int())),
    ("on different devices", lambda: kernels.causal_dot_product(x4, x4, x4.to("meta"))),
    ("state.kv has shape", lambda: kernels.taylor_linear_attention(x4, x4, x4, TaylorState(x4, x4))),
    ("mask has shape", lambda: kernels.taylor_linear_attention(x4, x4, x4, mask=torch.ones(2, 4))),
    ("decay has shape", lambda: kernels.taylor_linear_attention(x4, x4, x4, decay=torch.ones(2))),
    ("state has shape", lambda: kernels.causal_dot_product(x4, x4, x4, x4)),
    ("window >= 1", lambda: kernels.sliding_window_attention(x4, x4, x4, 0)),
    ("different shapes", lambda: kernels.short_conv(x3, torch.ones(4, 3), gate=x3[:1])),
    ("width >= 1", lambda: kernels.short_conv(x3, torch.ones(4, 0))),
    ("at least one number", lambda: kernels.taylor_linear_attention(x4[..., :0], x4[..., :0], x4)),
    ("at least one number", lambda: kernels.encode_prefix(x4, x4[..., :0])),
    (
        "lengths from -1 to 3, expected 0 to 3",
        lambda: kernels.short_conv(x3, torch.ones(4, 3), lengths=torch.tensor([3, -1])),
    ),
    (
        "lengths from 0 to 6, expected 0 to 5",
        lambda: kernels.sliding_window_attention(x4, x4, x4, 2, lengths=torch.tensor([6, 0])),
    ),
    ("weight has shape", lambda: kernels.short_conv(x3, torch.ones(5, 3))),
    ("bias has shape", lambda: kernels.short_conv(x3, torch.ones(4, 3), torch.ones(3))),
    ("lengths has shape", lambda: kernels.short_conv(x3, torch.ones(4, 3), lengths=torch.ones(3))),
    (
        "expected int64",
        lambda: kernels.sliding_window_attention(x4, x4, x4, 2, WindowState(x4[:, :2], x4[:, :2], torch.ones(2))),
    ),
    (
        "state.kv is torch.float64, expected torch.float32",
        lambda: kernels.taylor_linear_attention_step(
            x3, x3, x3, TaylorState(torch.ones(2, 3, 15, 4, dtype=torch.float64), torch.ones(2, 3, 15))
        ),
    ),
    (
        "state.v is torch.bfloat16, expected torch.float32",
        lambda: kernels.sliding_window_attention_step(
            x3, x3, x3, WindowState(torch.ones(2, 5, 3, 4), torch.ones(2, 5, 3, 4).bfloat16(), torch.ones(2).long())
        ),
    ),
    (
        "must be contiguous",
        lambda: kernels.taylor_linear_attention_step(
            x3, x3, x3, TaylorState(torch.ones(2, 3, 4, 15).mT, torch.ones(2, 3, 15))
        ),
    ),
    (
        "must not require a gradient",
        lambda: kernels.taylor_linear_attention_step(
            x3, x3, x3, TaylorState(torch.ones(2, 3, 15, 4, requires_grad=True), torch.ones(2, 3, 15))
        ),
    ),
]


@pytest.mark.parametrize(("message", "call"), WRONG, ids=[message for message, _ in WRONG])
def test_wrong_calls_say_what_is_wrong(message: str, call: Callable[[], object]) -> None:
    with pytest.raises(UserError, match=message):
        call()


def test_counts_that_nobody_looked_into_read_no_foreign_memory(cpu: str) -> None:
    """As in a compiled graph, where the values of a tensor are unknown when it is checked."""
    x, weight, out_of_range = normal(2, 6, 8), normal(8, 3), torch.tensor([1 << 40, -5])
    ops = torch.ops.jrt_eval
    got = ops.short_conv(x, x, weight, None, None, out_of_range, True)
    want = ops.short_conv(x, x, weight, None, None, torch.tensor([6, 0]), True)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    v = x.view(2, 6, 2, 4)
    got = ops.sliding_window_attention(v, v, v, 4, None, None, None, out_of_range)
    want = ops.sliding_window_attention(v, v, v, 4, None, None, None, torch.tensor([6, 0]))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    steps = []
    for seen in (-3, 0):
        ring = WindowState(v[:, :4].clone(), v[:, :4].clone(), torch.tensor([seen, seen]))
        steps.append([kernels.sliding_window_attention_step(v[:, 0], v[:, 5], v[:, 5], ring), *ring[:2]])
    assert all(torch.equal(a, b) for a, b in zip(*steps, strict=True))


def test_a_step_of_a_negated_view(cpu: str) -> None:
    x = torch.complex(normal(2, 3, 4), normal(2, 3, 4)).conj().imag
    assert x.is_neg()
    plain = x.resolve_neg()
    for step in (
        lambda y: kernels.taylor_linear_attention_step(
            y, y, y, TaylorState(torch.zeros(2, 3, 15, 4), torch.zeros(2, 3, 15))
        ),
        lambda y: kernels.sliding_window_attention_step(
            y, y, y, WindowState(torch.zeros(2, 5, 3, 4), torch.zeros(2, 5, 3, 4), torch.zeros(2).long())
        ),
        lambda y: kernels.short_conv_step(y[:, 0], torch.ones(4, 3), None, torch.zeros(2, 2, 4), gate=y[:, 1]),
    ):
        torch.testing.assert_close(step(x), step(plain))


def overlapping() -> list[tuple[str, Callable[[str], object]]]:
    """Decode steps whose inputs, or parts of whose states, overlap the memory that they update."""
    room = torch.zeros(2 * 3 * 15 * 5)
    kv, k_sum = torch.zeros(2, 3, 15, 4), torch.zeros(2, 3, 15)
    rings = torch.zeros(2, 2, 5, 3, 4)
    seen = torch.zeros(2, dtype=torch.int64)
    memory = torch.zeros(40)
    past, weight = memory[:16].view(2, 2, 4), torch.zeros(4, 3)
    step, window, conv = (
        kernels.taylor_linear_attention_step,
        kernels.sliding_window_attention_step,
        kernels.short_conv_step,
    )
    state = TaylorState(kv, k_sum)
    ring = WindowState(rings[0], rings[1], seen)
    inside = k_sum.flatten()
    return [
        ("v overlaps state.kv", lambda b: step(x3, x3, kv[:, :, 0], state, backend=b)),
        ("k overlaps state.kv", lambda b: step(x3, kv[:, :, 7], x3, state, backend=b)),
        # it starts before the state and reaches into it
        (
            "q overlaps state.k",
            lambda b: step(room[:24].view(2, 3, 4), x3, x3, TaylorState(kv, room[20:110].view(2, 3, 15)), backend=b),
        ),
        ("decay overlaps state.k", lambda b: step(x3, x3, x3, state, decay=inside[80:83], backend=b)),
        (
            "state.k overlaps state.kv",
            lambda b: step(x3, x3, x3, TaylorState(kv, kv.flatten()[-90:].view(2, 3, 15)), backend=b),
        ),
        ("k overlaps state.k", lambda b: window(x3, rings[0][:, 0], x3, ring, backend=b)),
        ("v overlaps state.k", lambda b: window(x3, x3, rings[0][:, 4], ring, backend=b)),
        ("state.v overlaps state.k", lambda b: window(x3, x3, x3, WindowState(rings[0], rings[0], seen), backend=b)),
        ("x overlaps state", lambda b: conv(memory[10:18].view(2, 4), weight, None, past, backend=b)),
        ("bias overlaps state", lambda b: conv(x3[:, 0], weight, memory[12:16], past, backend=b)),
    ]


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize(("message", "call"), overlapping(), ids=[message for message, _ in overlapping()])
def test_a_step_does_not_read_what_it_writes(
    cpu: str, backend: str, message: str, call: Callable[[str], object]
) -> None:
    with pytest.raises(UserError, match=f"{message} in memory, which is updated in place; pass .*clone"):
        call(backend)


def test_neighbours_in_memory_do_not_overlap(cpu: str) -> None:
    room = torch.zeros(24 + 90 + 360 + 24)
    q, k_sum, kv, v = room[:24].view(2, 3, 4), room[24:114].view(2, 3, 15), room[114:474], room[474:].view(2, 3, 4)
    v.fill_(1)
    y = kernels.taylor_linear_attention_step(q, q, v, TaylorState(kv.view(2, 3, 15, 4), k_sum), backend=cpu)
    torch.testing.assert_close(y, v)
    row = torch.randn(2, 7, 3, 4)[:, 3]  # strides that skip over other tokens
    state = TaylorState(torch.zeros(2, 3, 15, 4), torch.zeros(2, 3, 15))
    torch.testing.assert_close(kernels.taylor_linear_attention_step(row, row, row, state, backend=cpu), row)


def a_step() -> tuple[Tensor, Tensor, Tensor, TaylorState]:
    q, k, v = normal(2, 5, 3, 4), normal(2, 4, 3, 4), normal(2, 3, 3, 6)
    return q[:, 1], k[:, 1], v[:, 1], TaylorState(normal(2, 3, 15, 6), torch.rand(2, 3, 15) + 15)


@pytest.fixture
def looks(cpu: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operators whose arguments went through the detailed checks since."""
    kernels.taylor_linear_attention_step(*a_step(), backend=cpu)  # the first one chooses
    seen: list[str] = []
    slow = checks.qkv
    monkeypatch.setattr(checks, "qkv", lambda name, *x: (seen.append(name), slow(name, *x)))
    return seen


@pytest.mark.skipif(
    not hasattr(Tensor, "__dlpack_c_exchange_api__"), reason="this PyTorch has no DLPack exchange table"
)
def test_a_plain_step_takes_the_short_way(cpu: str, looks: list[str]) -> None:
    q, k, v, state = a_step()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for w in (v, v.contiguous(), v.transpose(0, 1).contiguous().transpose(0, 1)):
            for rates in (None, torch.tensor([0.5, 0.9, 1.0])):
                fresh = [TaylorState(state.kv.clone(), state.k.clone()) for _ in range(2)]
                inputs = [x.to(dtype) for x in (q, k, w)]
                y = kernels.taylor_linear_attention_step(*inputs, fresh[0], decay=rates, backend=cpu)
                assert y.is_contiguous() and y.dtype is dtype
                want = kernels.taylor_linear_attention_step(*inputs, fresh[1], decay=rates, backend="torch")
                assert oracle.error(y, want) < oracle.TOLERANCE[dtype]
                assert oracle.error(fresh[0].kv, fresh[1].kv) < 1e-6
    assert looks == ["taylor_linear_attention_step"] * 18  # the reference's


class Sub(Tensor):
    pass


def unusual() -> dict[str, Callable[[Tensor, Tensor, Tensor, TaylorState], tuple[Any, ...]]]:
    """Right arguments that the short way leaves to the long one."""
    return {
        "decay of another dtype": lambda q, k, v, s: (q, k, v, s, torch.full((3,), 0.5, dtype=torch.float64)),
        "decay that is not contiguous": lambda q, k, v, s: (q, k, v, s, torch.full((6,), 0.5)[::2]),
        "values of another layout": lambda q, k, v, s: (q, k, v.mT.contiguous().mT, s, None),
        "a negated view": lambda q, k, v, s: (torch.complex(q, -q).conj().imag, k, v, s, None),
        "a subclass": lambda q, k, v, s: (q.as_subclass(Sub), k, v, s, None),
        "a parameter": lambda q, k, v, s: (torch.nn.Parameter(q.clone(), requires_grad=False), k, v, s, None),
    }


@pytest.mark.parametrize("name", list(unusual()))
def test_an_unusual_step_takes_the_long_way(cpu: str, looks: list[str], name: str) -> None:
    q, k, v, state = a_step()
    want_state = TaylorState(state.kv.clone(), state.k.clone())
    *arguments, decay = unusual()[name](q, k, v, state)
    y = kernels.taylor_linear_attention_step(*arguments, decay=decay, backend=cpu)
    assert looks == ["taylor_linear_attention_step"]
    want = kernels.taylor_linear_attention_step(q, k, v, want_state, decay=decay, backend="torch")
    assert oracle.error(y, want) < 1e-5
    assert oracle.error(state.kv, want_state.kv) < 1e-6


def test_a_pytorch_without_the_exchange_table_steps_too(cpu: str, looks: list[str]) -> None:
    q, k, v, state = a_step()
    want = kernels.taylor_linear_attention_step(
        q, k, v, TaylorState(state.kv.clone(), state.k.clone()), backend="torch"
    )
    module = compiled.module()
    try:
        assert not module.prepare_quick_step(Tensor, None)
        y = kernels.taylor_linear_attention_step(q, k, v, state, backend=cpu)
    finally:
        module.prepare_quick_step(Tensor, getattr(Tensor, "__dlpack_c_exchange_api__", None))
    assert oracle.error(y, want) < 1e-5
    assert looks == ["taylor_linear_attention_step", "taylor_linear_attention_step"]


def test_nothing_is_computed_for_nothing(cpu: str) -> None:
    empty = torch.ones(0, 5, 3, 4)
    y, state = kernels.taylor_linear_attention(empty, empty, empty, backend=cpu)
    assert y.shape == empty.shape
    assert state.kv.shape == (0, 3, 15, 4)
    w, ring = kernels.sliding_window_attention(empty, empty, empty, 2, backend=cpu)
    assert w.shape == empty.shape
    assert ring.k.shape == (0, 2, 3, 4)
