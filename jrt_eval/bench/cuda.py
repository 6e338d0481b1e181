"""Times prefill on a GPU over the lengths and batch sizes of Table 5 of "Just read twice" (arXiv 2407.05483), and a decode step.

Every implementation is timed in bfloat16, in the same rounds as a copy and a matrix product, so that shares of both refer to the speed of the
GPU at that moment. JRT-RNN's encoder has half the length. Bytes are counted, not measured: `least` is what any kernel must read and write,
`moved` what ours reads and writes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from jrt_eval.bench import alternatives
from jrt_eval.bench.cuda_forms import CAUSAL, OURS, OURS_PREFIX, PREFIX, SOFTMAX, Form, Inputs, forms
from jrt_eval.bench.kernels import minimal_flops
from jrt_eval.bench.tables import time_text
from jrt_eval.bench.timing import Copy, Matmul, Timing, synchronize, timings
from jrt_eval.kernels import TaylorState, num_features, taylor_linear_attention, taylor_linear_attention_step
from jrt_eval.models.recurrent.graphs import record

LENGTHS = [2**n for n in range(11, 18)]  # at BATCH rows
BATCHES = [2, 4, 8, 16, 32, 64]  # at LENGTH tokens
BATCH, LENGTH = 16, 16384
DTYPE = torch.bfloat16
BYTES = 2  # of one number
MOST_SECONDS = 4.0  # implementations that would take longer for one call, judging by the previous size, are left out
COPY, MATMUL = "copy", "matrix product"
STATES = 8  # decode steps alternate between these, as between the layers of a model; a single state would stay in the GPU's cache


@dataclass(frozen=True)
class HeadShape:
    """The sizes that all measurements of a run share."""

    heads: int
    d: int  # feature dim
    f: int  # head dim
    device: torch.device


@dataclass(frozen=True)
class PrefillSize:
    """One prefill of a sweep."""

    sweep: str  # length or batch
    batch: int
    length: int

    @property
    def encoder(self) -> int:
        return self.length // 2

    def __str__(self) -> str:
        return f"{self.batch} x {self.length}"


@dataclass(frozen=True)
class GpuTiming:
    """One implementation at one size: seconds of one call, or why there are none."""

    sweep: str  # length, batch or decode
    operator: str
    name: str
    batch: int
    length: int
    note: str = ""  # why it was left out
    seconds: float | None = None  # the median
    fastest: float | None = None
    slowest: float | None = None
    flops: int | None = None  # the fewest that the operator takes
    least_bytes: int | None = None
    moved_bytes: int | None = None  # ours only
    copy_bytes_per_s: float | None = None  # read and written, in the same rounds
    matmul_flops_per_s: float | None = None

    @property
    def flops_per_s(self) -> float | None:
        return None if self.seconds is None or self.flops is None else self.flops / self.seconds

    @property
    def of_copy(self) -> float | None:
        """The fewest bytes over the time, over the copy's rate."""
        if self.seconds is None or self.least_bytes is None or self.copy_bytes_per_s is None:
            return None
        return self.least_bytes / self.seconds / self.copy_bytes_per_s

    @property
    def moved_over_least(self) -> float | None:
        return None if self.moved_bytes is None or self.least_bytes is None else self.moved_bytes / self.least_bytes

    def as_dict(self) -> dict[str, Any]:
        extra = {name: getattr(self, name) for name in ("flops_per_s", "of_copy", "moved_over_least")}
        return {**asdict(self), **extra}


def points(lengths: Iterable[int], batches: Iterable[int], batch: int, length: int = LENGTH) -> list[PrefillSize]:
    """All sizes, the fewest tokens first, so that an interrupted run has the cheap ones. Each size is timed once."""
    first = [PrefillSize("length", batch, each) for each in sorted(set(lengths))]
    shared = {point.batch for point in first if point.length == length}
    second = [PrefillSize("batch", each, length) for each in sorted(set(batches) - shared)]
    return sorted(first + second, key=lambda point: (point.batch * point.length, point.length))


def state_bytes(shape: HeadShape, batch: int) -> int:
    """Of the float32 sums of every row and head."""
    return 4 * batch * shape.heads * num_features(shape.d) * (shape.f + 1)


def flops(operator: str, shape: HeadShape, point: PrefillSize) -> int:
    """The fewest matrix-product FLOPs: symmetric features and chunks of 64, or half the square of scores twice."""
    rows = point.batch * shape.heads
    if operator == SOFTMAX:
        return 2 * rows * point.length**2 * shape.f
    causal = minimal_flops(point.batch, shape.heads, point.length, shape.d, shape.f)
    return causal + (2 * rows * point.encoder * num_features(shape.d) * shape.f if operator == PREFIX else 0)


def least_bytes(operator: str, shape: HeadShape, point: PrefillSize) -> int:
    """q, k, v and y, and the encoder's k and v, once each."""
    rows = point.batch * shape.heads * BYTES
    if operator == SOFTMAX:
        return 4 * rows * point.length * shape.f
    causal = 2 * rows * point.length * (shape.d + shape.f)
    return causal + (rows * point.encoder * (shape.d + shape.f) if operator == PREFIX else 0)


def moved_bytes(operator: str, shape: HeadShape, point: PrefillSize, parts: int, encoder_parts: int = 1) -> int:
    """Bytes that our kernels read and write: all inputs and outputs once, and the state.

    Cutting a sequence into `parts` adds k and v of all parts but the last, and sums that are written, added up (read and written) and read again.
    """
    state, tokens = state_bytes(shape, point.batch), point.batch * shape.heads * BYTES * (shape.d + shape.f)

    def cut(length: int, into: int) -> int:
        return tokens * length * (into - 1) // into + 4 * (into - 1) * state

    moved = least_bytes(operator, shape, point) + state + cut(point.length, parts)
    if operator == PREFIX and parts > 1:  # else one launch: no token twice, and the encoder's sums stay in registers
        moved += 2 * encoder_parts * state + 2 * state  # written and read; and the state before the first part
    return moved


def _parts(shape: HeadShape, point: PrefillSize) -> tuple[int, int]:
    """The number of parts into which our kernels cut a sequence and the encoder's."""
    if shape.device.type != "cuda":
        return 1, 1
    from jrt_eval.kernels.taylor_linear_attention import cuda

    processors = torch.cuda.get_device_properties(shape.device).multi_processor_count
    rows = point.batch * shape.heads
    parts = cuda.segments(rows, point.length, processors)
    return parts, cuda.encoder_segments(point.encoder, point.length, parts)


def inputs(shape: HeadShape, batch: int, length: int, encoder: int) -> Inputs:
    """Normally distributed inputs, so that scores are of order one."""
    g = torch.Generator(shape.device).manual_seed(0)

    def normal(tokens: int, dim: int) -> Tensor:
        return torch.randn(batch, tokens, shape.heads, dim, device=shape.device, dtype=DTYPE, generator=g)

    q, k, v = normal(length, shape.d), normal(length, shape.d), normal(length, shape.f)
    return Inputs(q, k, v, normal(encoder, shape.d), normal(encoder, shape.f))


def errors(shape: HeadShape, candidates: Iterable[Form], batch: int = 2, length: int = 512) -> dict[str, float | str]:
    """Relative error (in norm) of each implementation against the PyTorch reference in float32, to notice one that is called wrongly."""
    x = inputs(shape, batch, length, length // 2)
    wide = Inputs(x.q.float(), x.k.float(), x.v.float(), x.k_enc.float(), x.v_enc.float())
    right = {
        CAUSAL: taylor_linear_attention(wide.q, wide.k, wide.v, backend="torch")[0],
        PREFIX: next(form for form in forms() if form.name == "PyTorch linear, JRT-RNN, float32").ready(wide)(),
    }
    found: dict[str, float | str] = {}
    for form in candidates:
        if form.operator in right and form.missing is None:
            want = right[form.operator]
            y = _attempt(lambda form=form: form.ready(x)())  # type: ignore[misc]
            found[form.name] = y if isinstance(y, str) else float((y.float() - want).norm() / want.norm())
    return found


def _attempt(run: Callable[[], Any]) -> Any:
    """The result, or one line about the error. A kernel of another package may fail in any way, and the others are still timed."""
    try:
        return run()
    except torch.cuda.OutOfMemoryError:
        return "out of memory"
    except Exception as error:  # noqa: BLE001
        return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _expected(form: Form, point: PrefillSize, before: Mapping[str, GpuTiming]) -> float:
    """Seconds of a call, judging by the last measurement of this implementation; 0 if there is none."""
    last = before.get(form.name)
    if last is None or last.seconds is None:
        return 0.0
    return last.seconds * point.batch / last.batch * (point.length / last.length) ** (2 if form.quadratic else 1)


class Ceilings:
    """A copy and a matrix product, timed together with every implementation: the limits of this GPU at that moment."""

    def __init__(self, device: torch.device, seconds: float = 1.0) -> None:
        self.seconds = seconds  # for each implementation at each size, approximately
        real = device.type == "cuda"  # on a CPU this module is only tested
        self.copy = Copy(device, 1 << 30 if real else 1 << 16)
        self.matmul = Matmul(device, DTYPE, 8192 if real else 32)

    def timings(self, runs: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, Timing]:
        return timings({COPY: self.copy, MATMUL: self.matmul, **runs}, device, fewest=2, seconds=self.seconds)

    def row(self, row: GpuTiming, taken: Mapping[str, Timing]) -> GpuTiming:
        """The row with its time, if it has one, and the ceilings of the same rounds."""
        time = taken.get(row.name)
        if time is None:
            return row
        return replace(
            row,
            seconds=time.median,
            fastest=time.fastest,
            slowest=time.slowest,
            copy_bytes_per_s=self.copy.bytes / taken[COPY].median,
            matmul_flops_per_s=self.matmul.flops / taken[MATMUL].median,
        )


def _ready(
    candidates: Mapping[str, Callable[[], Callable[[], object]]], device: torch.device
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """The calls that work, and why the others do not."""
    runs: dict[str, Callable[[], object]] = {}
    notes: dict[str, str] = {}
    for name, ready in candidates.items():

        def once(ready: Callable[[], Callable[[], object]] = ready) -> Callable[[], object]:
            run = ready()
            run()
            synchronize(device)
            return run

        run = _attempt(once)
        if isinstance(run, str):
            notes[name] = run
            if device.type == "cuda":
                torch.cuda.empty_cache()
        else:
            runs[name] = run
    return runs, notes


def prefill(
    shape: HeadShape, point: PrefillSize, candidates: list[Form], before: Mapping[str, GpuTiming], ceilings: Ceilings
) -> list[GpuTiming]:
    """Every implementation at one size. before: the last measurement of each."""
    x = inputs(shape, point.batch, point.length, point.encoder)
    notes = {form.name: form.missing for form in candidates if form.missing is not None}
    for form in candidates:
        seconds = _expected(form, point, before)
        if seconds > MOST_SECONDS:
            notes[form.name] = f"would take about {seconds:.0f} s"
    tried = {form.name: partial(form.ready, x) for form in candidates if form.name not in notes}
    runs, failed = _ready(tried, shape.device)
    notes.update(failed)
    taken = ceilings.timings(runs, shape.device)
    rows = []
    for form in candidates:
        row = GpuTiming(
            point.sweep,
            form.operator,
            form.name,
            point.batch,
            point.length,
            notes.get(form.name, ""),
            flops=flops(form.operator, shape, point),
            least_bytes=least_bytes(form.operator, shape, point),
        )
        if form.name in (OURS, OURS_PREFIX):
            row = replace(row, moved_bytes=moved_bytes(form.operator, shape, point, *_parts(shape, point)))
        rows.append(ceilings.row(row, taken))
    return rows


def decode(shape: HeadShape, batch: int, ceilings: Ceilings) -> list[GpuTiming]:
    """A decode step: ours as single calls and as a CUDA graph, and PyTorch's forms. The fewest bytes are those of the state."""
    device, n = shape.device, num_features(shape.d)
    x = inputs(shape, batch, 1, 0)
    q, k, v = x.q[:, 0], x.k[:, 0], x.v[:, 0]
    wide = q.float(), k.float(), v.float()

    def fresh(features: int) -> list[TaylorState]:
        rows = (batch, shape.heads, features)
        return [
            TaylorState(torch.zeros(*rows, shape.f, device=device), torch.ones(*rows, device=device))
            for _ in range(STATES)
        ]

    def around(step: Callable[[TaylorState], Tensor], features: int) -> Callable[[], object]:
        states = cycle(fresh(features))
        return lambda: step(next(states))

    def ours(state: TaylorState) -> Tensor:
        return taylor_linear_attention_step(q, k, v, state)

    candidates: dict[str, Callable[[], Callable[[], object]]] = {
        "jrt-eval, CUDA graph": lambda: _graph(ours, fresh(n)),
        "jrt-eval": lambda: around(ours, n),
        "PyTorch, in place, symmetric": lambda: around(
            lambda state: taylor_linear_attention_step(q, k, v, state, backend="torch"), n
        ),
        "PyTorch, as released": lambda: around(
            lambda state: alternatives.naive_step(*wide, *state), 1 + shape.d + shape.d**2
        ),
    }
    if device.type != "cuda":
        del candidates["jrt-eval, CUDA graph"]
    runs, notes = _ready(candidates, device)
    taken = ceilings.timings(runs, device)
    least = 2 * state_bytes(shape, batch) + 2 * BYTES * batch * shape.heads * (shape.d + shape.f)
    work = 4 * batch * shape.heads * n * shape.f
    rows = []
    for name in candidates:
        row = GpuTiming("decode", CAUSAL, name, batch, 1, notes.get(name, ""), flops=work, least_bytes=least)
        row = ceilings.row(row, taken)
        if "graph" in name and row.seconds is not None:  # a replay is a step on every state
            times = {part: getattr(row, part) / STATES for part in ("seconds", "fastest", "slowest")}
            row = replace(row, **times)
        rows.append(row)
    return rows


def _graph(step: Callable[[TaylorState], Tensor], states: list[TaylorState]) -> Callable[[], object]:
    """A function that replays one step on each state."""
    return record(lambda: [step(state) for state in states])


def measure(
    shape: HeadShape, sweeps: list[PrefillSize], batches: list[int], seconds: float = 1.0
) -> Iterator[list[GpuTiming]]:
    """Yield the timings of a decode step at each batch size, then of each prefill."""
    candidates, ceilings, before = forms(), Ceilings(shape.device, seconds), dict[str, GpuTiming]()
    with torch.no_grad():
        for batch in sorted(set(batches)):
            yield decode(shape, batch, ceilings)
        for point in sweeps:
            rows = prefill(shape, point, candidates, before, ceilings)
            before.update((row.name, row) for row in rows if row.seconds is not None)
            yield rows


HEADER = ["time", "of ours", "TFLOP/s", "GB at least", "moved/least", "of copy"]


def lines(rows: list[GpuTiming]) -> list[list[str]]:
    """The table of one size under `HEADER`, fastest first. Implementations that were left out come last, with the reason."""
    ours = next((row.seconds for row in rows if row.name.startswith("jrt-eval") and row.seconds), None)

    def cells(row: GpuTiming) -> list[str]:
        if row.seconds is None:
            return [row.name, row.note]
        ratio = "" if ours is None else f"{row.seconds / ours:.2f}x"
        work = "" if row.flops_per_s is None else f"{row.flops_per_s / 1e12:.1f}"
        least = "" if row.least_bytes is None else f"{row.least_bytes / 1e9:.3f}"
        moved = "" if row.moved_over_least is None else f"{row.moved_over_least:.2f}"
        return [row.name, time_text(row.seconds), ratio, work, least, moved, _share(row)]

    return [cells(row) for row in sorted(rows, key=lambda row: (row.seconds is None, row.seconds))]


def _share(row: GpuTiming | None) -> str:
    return "" if row is None or row.of_copy is None else f"{row.of_copy:.1%}"


RIVALS = [
    "FlashAttention-2",
    "cuDNN",
    "fla ",
    "PyTorch linear, chunks",
]  # of those whose name begins so, the fastest counts
SUMMARY = [
    "batch x length",
    "Based",
    "of copy",
    "JRT-RNN",
    "of copy",
    *(f"{kind.strip()} / JRT-RNN" for kind in RIVALS),
]


def summary(rows: list[GpuTiming]) -> list[list[str]]:
    """A line for each size under `SUMMARY`: our times, their shares of a copy's rate, and the times of others relative to JRT-RNN."""
    points: dict[tuple[int, int], dict[str, GpuTiming]] = {}
    for row in rows:
        if row.sweep != "decode" and row.seconds is not None:
            points.setdefault((row.batch, row.length), {})[row.name] = row
    found = []
    lengths = {(row.batch, row.length) for row in rows if row.sweep == "length"}
    for (batch, length), here in sorted(points.items(), key=lambda item: (item[0] not in lengths, item[0])):
        line = [f"{batch} x {length:,}"]
        for name in (OURS, OURS_PREFIX):
            mine = here.get(name)
            line += ["" if mine is None or mine.seconds is None else time_text(mine.seconds), _share(mine)]
        base = here.get(OURS_PREFIX)
        for kind in RIVALS:
            others = [row.seconds for row in here.values() if row.name.startswith(kind) and row.seconds is not None]
            known = others and base is not None and base.seconds is not None
            line.append(f"{min(others) / base.seconds:.1f}x" if known else "")  # type: ignore[union-attr, operator]
        found.append(line)
    return found


def rates(rows: list[GpuTiming]) -> dict[str, float]:
    """Medians over all sizes of a run."""
    copies = [row.copy_bytes_per_s for row in rows if row.copy_bytes_per_s is not None]
    products = [row.matmul_flops_per_s for row in rows if row.matmul_flops_per_s is not None]
    return {"copy (bytes/s)": statistics.median(copies), "matrix product (FLOP/s)": statistics.median(products)}
