"""Implementations that are timed on a GPU: ours, fla's Triton kernels, PyTorch's forms, and several implementations of softmax attention.

Each is prepared for its inputs once (for example by changing their layout) and then called. Implementations from packages that are not
installed stay in the table with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from jrt_eval.bench import alternatives
from jrt_eval.kernels import encode_prefix, feature_map, prefix_linear_attention, taylor_linear_attention

CAUSAL, PREFIX, SOFTMAX = "Based", "JRT-RNN", "softmax"  # the operator that an implementation computes


@dataclass(frozen=True)
class Inputs:
    """(batch, length, heads, dim), the layout of a model's projections. Softmax attention uses v for q and k, since all three are as wide."""

    q: Tensor
    k: Tensor
    v: Tensor
    k_enc: Tensor
    v_enc: Tensor


Ready = Callable[[Inputs], Callable[[], Tensor]]


@dataclass(frozen=True)
class Form:
    """An implementation of an operator. `ready` returns the call that is timed, whose result is y."""

    name: str
    operator: str
    ready: Ready
    quadratic: bool = False  # time grows with the square of the length
    missing: str | None = None  # why it cannot run here


def _turned(x: Tensor) -> Tensor:
    """(batch, heads, length, dim), contiguous."""
    return x.transpose(1, 2).contiguous()


def _ours(x: Inputs) -> Callable[[], Tensor]:
    return lambda: taylor_linear_attention(x.q, x.k, x.v)[0]


def _ours_prefix(x: Inputs) -> Callable[[], Tensor]:
    return lambda: prefix_linear_attention(x.q, x.k, x.v, x.k_enc, x.v_enc)[0]


def _torch_prefix(x: Inputs) -> Callable[[], Tensor]:
    def run() -> Tensor:
        state = encode_prefix(x.k_enc, x.v_enc, backend="torch")
        return taylor_linear_attention(x.q, x.k, x.v, state, backend="torch")[0]

    return run


def _torch(form: alternatives.Alternative) -> Ready:
    def ready(x: Inputs) -> Callable[[], Tensor]:
        q, k, v = _turned(x.q), _turned(x.k), _turned(x.v)
        return lambda: form(q, k, v).transpose(1, 2)

    return ready


def _sdpa(backend: SDPBackend) -> Ready:
    def ready(x: Inputs) -> Callable[[], Tensor]:
        v = _turned(x.v)

        def run() -> Tensor:
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(v, v, v, is_causal=True)

        return run

    return ready


def _package(name: str) -> tuple[Any, str | None]:
    """A module, or why it cannot be imported. Importing another package may raise anything."""
    try:
        return import_module(name), None
    except ImportError as error:
        return None, f"{name.partition('.')[0]} is not installed ({error})"
    except Exception as error:  # noqa: BLE001
        return None, f"{name} does not import: {type(error).__name__}: {error}"


def _flash_attn() -> Form:
    package, missing = _package("flash_attn")

    def ready(x: Inputs) -> Callable[[], Tensor]:
        return lambda: package.flash_attn_func(x.v, x.v, x.v, causal=True)

    return Form("FlashAttention-2 (flash-attn)", SOFTMAX, ready, True, missing)


def _fla() -> list[Form]:
    """fla's operators for Based, and its newer linear attention applied to the 153 symmetric features."""
    based, missing = _package("fla.ops.based")
    linear, missing_linear = _package("fla.ops.linear_attn")

    def of_based(name: str) -> Ready:
        return lambda x: lambda: getattr(based, name)(x.q, x.k, x.v)

    def over_features(name: str) -> Ready:
        def ready(x: Inputs) -> Callable[[], Tensor]:
            run = getattr(linear, name)
            return lambda: run(feature_map(x.q), feature_map(x.k), x.v, scale=1.0, normalize=True)[0]

        return ready

    return [
        Form("fla parallel_based", CAUSAL, of_based("parallel_based"), True, missing),
        Form("fla fused_chunk_based", CAUSAL, of_based("fused_chunk_based"), False, missing),
        Form("fla chunk_linear_attn", CAUSAL, over_features("chunk_linear_attn"), False, missing_linear),
        Form("fla fused_chunk_linear_attn", CAUSAL, over_features("fused_chunk_linear_attn"), False, missing_linear),
    ]


OURS = "jrt-eval, Based"
OURS_PREFIX = "jrt-eval, JRT-RNN"


def forms() -> list[Form]:
    """All implementations, ours first, including those of missing packages."""
    return [
        Form(OURS, CAUSAL, _ours),
        Form(OURS_PREFIX, PREFIX, _ours_prefix),
        *_fla(),
        Form("PyTorch linear, chunks of 64", CAUSAL, _torch(alternatives.linear_loop)),
        Form("PyTorch quadratic, features", CAUSAL, _torch(alternatives.quadratic_features), True),
        Form("PyTorch linear, JRT-RNN, float32", PREFIX, _torch_prefix),
        Form("FlashAttention-2 (PyTorch)", SOFTMAX, _sdpa(SDPBackend.FLASH_ATTENTION), True),
        _flash_attn(),
        Form("cuDNN attention (PyTorch)", SOFTMAX, _sdpa(SDPBackend.CUDNN_ATTENTION), True),
    ]
