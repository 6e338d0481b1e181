"""Linear layers through oneDNN against F.linear in float64, and that a packed layer is still an nn.Linear."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jrt_eval.kernels import linear
from jrt_eval.kernels.linear import OneDNNLinear, PackedLinear

DTYPES = [d for d in (torch.float32, torch.bfloat16) if linear.available(d)]
pytestmark = pytest.mark.skipif(not DTYPES, reason="this PyTorch has no oneDNN")
# (in, out): odd, prime and one-wide ones
SHAPES = [(1, 1), (1, 17), (17, 1), (53, 37), (64, 64), (129, 255), (576, 192)]
ROWS = [(0,), (1,), (3,), (2, 5), (2, 0), (1, 130), (2, 3, 4), ()]


def layer(width: int, out: int, dtype: torch.dtype = torch.float32, bias: bool = False, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(width, out, bias=bias).to(dtype).eval()


def converted(kind: type[OneDNNLinear], plain: nn.Linear) -> nn.Linear:
    y = copy.deepcopy(plain)
    kind.convert(y)
    assert type(y) is kind
    return y


def close(y: torch.Tensor, x: torch.Tensor, plain: nn.Linear) -> None:
    """Within rounding of the float64 product: the terms' absolute sum times a few units of the dtype."""
    x, w = x.double(), plain.weight.detach().double()
    b = None if plain.bias is None else plain.bias.detach().double()
    exact = F.linear(x, w, b)
    size = F.linear(x.abs(), w.abs(), None if b is None else b.abs())
    units = torch.finfo(y.dtype).eps * exact.abs() + 4 * torch.finfo(torch.float32).eps * size
    assert y.shape == exact.shape
    assert (y.double() - exact).abs().le(units + 1e-30).all()


@pytest.mark.parametrize("kind", [OneDNNLinear, PackedLinear])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("width", "out"), SHAPES)
@torch.no_grad()
def test_product_agrees_with_float64(kind, dtype, bias, width, out):
    plain = layer(width, out, dtype, bias)
    fast = converted(kind, plain)
    for rows in ROWS:
        x = torch.randn(*rows, width).to(dtype)
        close(fast(x), x, plain)
    assert type(fast) is kind


@pytest.mark.parametrize("kind", [OneDNNLinear, PackedLinear])
@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_inputs_that_are_not_contiguous(kind, dtype):
    plain = layer(48, 29, dtype, bias=True)
    fast = converted(kind, plain)
    wide = torch.randn(4, 7, 96).to(dtype)
    inputs = [
        wide[..., ::2],  # every other element
        wide[..., 48:],  # half of a fused projection
        wide[..., :48].transpose(0, 1),
        torch.randn(48, 5).to(dtype).t(),
        torch.randn(1, 1, 48).to(dtype).expand(3, 2, 48),
        wide.flip(-1)[..., :48],
    ]
    for x in inputs:
        close(fast(x), x, plain)


@pytest.mark.parametrize("kind", [OneDNNLinear, PackedLinear])
@torch.inference_mode()
def test_inference_mode(kind):
    plain = layer(33, 20)
    fast = converted(kind, plain)
    x = torch.randn(3, 33)
    close(fast(x), x, plain)


@torch.no_grad()
def test_weight_that_is_a_view():
    whole = torch.randn(40, 64)
    plain = nn.Linear(32, 40, bias=False)
    plain.weight = nn.Parameter(whole[:, ::2])
    for kind in (OneDNNLinear, PackedLinear):
        x = torch.randn(3, 32)
        close(converted(kind, plain)(x), x, plain)


@pytest.mark.parametrize("kind", [OneDNNLinear, PackedLinear])
def test_gradients_are_those_of_plain_layers(kind):
    plain = layer(31, 18, bias=True)
    fast = converted(kind, plain)
    parameter = dict(fast.named_parameters())["weight"]
    x = torch.randn(4, 31, requires_grad=True)
    plain(x).square().sum().backward()
    wanted, x.grad = x.grad, None
    fast(x).square().sum().backward()
    assert torch.allclose(x.grad, wanted, atol=1e-6)
    assert parameter is fast.weight  # what an optimiser made before the call holds
    assert torch.allclose(parameter.grad, plain.weight.grad, atol=1e-6)
    assert torch.allclose(fast.bias.grad, plain.bias.grad, atol=1e-6)


def test_gradient_of_the_input_alone():
    plain = layer(31, 18).requires_grad_(False)
    fast = converted(PackedLinear, plain)
    x = torch.randn(4, 31, requires_grad=True)
    fast(x).sum().backward()
    assert torch.allclose(x.grad, plain.weight.sum(0).expand(4, 31), atol=1e-6)


def test_training_steps_move_the_weight():
    plain, torch_layer = layer(16, 8), layer(16, 8)
    PackedLinear.convert(plain)
    optimiser = torch.optim.SGD(plain.parameters(), lr=0.1)
    other = torch.optim.SGD(torch_layer.parameters(), lr=0.1)
    plain.train()
    for _ in range(3):
        x = torch.randn(5, 16)
        for module, optimise in ((plain, optimiser), (torch_layer, other)):
            optimise.zero_grad()
            module(x).square().mean().backward()
            optimise.step()
    assert torch.allclose(plain.weight, torch_layer.weight, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_state_dicts_hold_values_and_leave_the_layer_packed(dtype):
    plain = layer(53, 37, dtype, bias=True)
    fast = nn.Sequential(converted(PackedLinear, plain))
    state = fast.state_dict()
    assert torch.equal(state["0.weight"], plain.weight) and torch.equal(state["0.bias"], plain.bias)
    assert type(fast[0]) is PackedLinear
    assert list(state) == ["0.weight", "0.bias"]
    live = fast.state_dict(keep_vars=True)
    assert live["0.weight"] is fast[0].weight


@pytest.mark.parametrize("assign", [False, True])
def test_loading_a_state_dict(assign):
    fast, other = converted(PackedLinear, layer(9, 7)), layer(9, 7, seed=1)
    fast.load_state_dict(other.state_dict(), assign=assign)
    x = torch.randn(2, 9)
    with torch.no_grad():
        close(fast(x), x, other)
    assert torch.equal(fast.weight, other.weight)


def test_copies_and_pickles():
    plain = layer(53, 37, bias=True)
    fast = nn.Sequential(converted(PackedLinear, plain))
    saved = io.BytesIO()
    torch.save(fast, saved)
    saved.seek(0)
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), torch.load(saved, weights_only=False)):
        assert type(twin[0]) is PackedLinear
        x = torch.randn(3, 53)
        with torch.no_grad():
            close(twin(x), x, plain)
        assert torch.equal(twin[0].weight, plain.weight)
    assert type(fast[0]) is PackedLinear


def test_reading_or_replacing_the_weight():
    plain = layer(53, 37)
    fast = converted(PackedLinear, plain)
    assert torch.equal(fast.weight, plain.weight) and type(fast) is OneDNNLinear
    fast = converted(PackedLinear, plain)
    other = layer(53, 37, seed=1)
    fast.weight = other.weight
    x = torch.randn(2, 53)
    with torch.no_grad():
        close(fast(x), x, other)


def test_parameters_without_values_have_shape_and_dtype():
    fast = converted(PackedLinear, layer(53, 37, bias=True))
    (name, weight), _ = fast.named_parameters()
    assert (name, weight.shape, weight.dtype, weight.numel()) == ("weight", (37, 53), torch.float32, 37 * 53)
    assert weight.isnan().all() and weight.untyped_storage().nbytes() == 4
    assert type(fast) is PackedLinear


@torch.no_grad()
def test_other_dtypes_and_devices():
    plain = layer(53, 37)
    for kind in (OneDNNLinear, PackedLinear):
        for dtype in (torch.float64, torch.float16, torch.bfloat16):
            x = torch.randn(2, 53).to(dtype)
            assert torch.allclose(converted(kind, plain).to(dtype)(x), copy.deepcopy(plain).to(dtype)(x), atol=1e-2)
    assert converted(PackedLinear, plain).to("meta")(torch.randn(2, 53, device="meta")).device.type == "meta"
    with torch.autocast("cpu", torch.bfloat16):
        fast = converted(PackedLinear, plain)
        x = torch.randn(2, 53)
        assert torch.equal(fast(x), plain(x)) and fast(x).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="dtype"):
        converted(PackedLinear, plain)(torch.randn(2, 53).bfloat16())


@torch.no_grad()
def test_compiled_models():
    plain = nn.Sequential(layer(53, 37), nn.ReLU(), layer(37, 8))
    fast = copy.deepcopy(plain)
    PackedLinear.convert(fast[0])
    OneDNNLinear.convert(fast[2])
    compiled = torch.compile(fast, backend="aot_eager")
    for rows in (1, 3, 4):
        x = torch.randn(rows, 53)
        assert torch.allclose(compiled(x), plain(x), atol=1e-6)
    assert type(fast[0]) is PackedLinear
