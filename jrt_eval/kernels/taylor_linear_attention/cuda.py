"""Taylor linear attention on a GPU, by the CUDA kernels.

16-bit inputs of feature dims to 16 and head dims to 128 use the tensor cores, with features rounded to bfloat16 and sums in
float32: bfloat16 of feature dim 16 on a Hopper GPU has a kernel of its own, the others share one for any GPU. float32 inputs, wider
features and decay use an exact, slower kernel. Sizes that no kernel supports use the PyTorch reference, and so do gradients with
decay. Other gradients are Triton kernels (`triton`), or PyTorch (`backward`) where there is no Triton.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from jrt_eval.errors import UserError
from jrt_eval.kernels import compiled
from jrt_eval.kernels.arguments import learns, single, step_on_views
from jrt_eval.kernels.device import facts, stream
from jrt_eval.kernels.layout import unmasked
from jrt_eval.kernels.optional import triton_module
from jrt_eval.kernels.taylor_linear_attention import backward, reference, schema
from jrt_eval.kernels.taylor_linear_attention.features import num_features
from jrt_eval.kernels.taylor_linear_attention.state import TaylorState

CHUNK = 64  # tokens that a block takes at a time
FAST_FEATURE_DIM, FAST_HEAD_DIM = 16, 128  # the most that the tensor-core kernel takes
GENERIC, TENSOR_CORES, HOPPER = 0, 1, 2  # csrc/cuda/args.hpp's kernels
HOPPER_COLUMNS = 64  # of a head, per block
STEP_FEATURE_DIM, STEP_HEAD_DIM = 32, 256  # the most that the decode step takes
TRITON_FEATURE_DIM, TRITON_SINGLE_FEATURE_DIM, TRITON_HEAD_DIM = 32, 16, 256  # the most that the backward kernels take

_c: Any = compiled.cuda_module()
_grad_enabled = torch.is_grad_enabled
_compiling = torch.compiler.is_compiling


def segments(rows: int, length: int, processors: int) -> int:
    """Into how many parts each of `rows` sequences is cut, so that there is work for all multiprocessors.

    Two blocks fit on a multiprocessor; one round of them, and four chunks or more for each, was fastest at every size that was measured.
    Cutting costs a second pass over all keys and values but the last part's.
    """
    return max(1, min(2 * processors // max(1, rows), length // (4 * CHUNK)))


def encoder_segments(encoder: int, length: int, parts: int) -> int:
    """Into how many parts an encoder's tokens are cut if the sequence is cut into `parts`, so that no part has more tokens."""
    chunks = -(-length // CHUNK)
    part = -(-chunks // parts) * CHUNK
    return -(-encoder // part)


def _fast(v: Tensor, dim: int, decay: Tensor | None) -> bool:
    return v.dtype != torch.float32 and dim <= FAST_FEATURE_DIM and v.shape[-1] <= FAST_HEAD_DIM and decay is None


def _aligned(x: Tensor | None) -> bool:
    """Whether a TMA tensor map can describe x: the elements of one token and head are adjacent, other strides are multiples of
    16 bytes (eight of bfloat16), and no two tokens, heads or rows share memory.
    """
    if x is None:
        return True
    batch, length, heads, dim = x.stride()
    apart = all(step > 0 or size == 1 for step, size in zip(x.stride(), x.shape, strict=True))
    return apart and dim == 1 and (batch | length | heads) % 8 == 0 and x.data_ptr() % 16 == 0


def _kernel(v: Tensor, dim: int, decay: Tensor | None, *others: Tensor | None) -> int:
    """Which kernel computes Taylor linear attention of these sizes; `others` are q and the keys and values besides v."""
    if not _fast(v, dim, decay):
        return GENERIC
    hopper = v.dtype == torch.bfloat16 and dim == FAST_FEATURE_DIM and v.shape[-1] > 32 and v.shape[-1] % 8 == 0
    if hopper and facts(v.device.index)[2] and _aligned(v) and all(map(_aligned, others)):
        return HOPPER
    return TENSOR_CORES


def fits(v: Tensor, dim: int, taylor: bool, decay: Tensor | None = None) -> bool:
    """Whether a kernel takes a state of these sizes."""
    if taylor and _fast(v, dim, decay):
        return True
    features = num_features(dim) if taylor else dim
    return bool(_c.generic_shared(dim, features, taylor) <= facts(v.device.index)[1])


def _linear(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    kv: Tensor | None,
    k_sum: Tensor | None,
    mask: Tensor | None,
    decay: Tensor | None,
    normaliser: bool,
    prefix: tuple[Tensor, Tensor, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, kv, k_sum and denominator (filled where `normaliser`); without q only kv and k_sum are filled.

    `prefix`: keys, values and mask of an encoder, whose sums come before the first token; instead of kv and k_sum.
    """
    batch, length, heads, head_dim = v.shape
    dim = k.shape[3]
    n = num_features(dim)
    k_enc, v_enc, mask_enc = (None, None, None) if prefix is None else prefix
    q, k_enc, v_enc = (None if x is None else x.resolve_neg() for x in (q, k_enc, v_enc))
    k, v = k.resolve_neg(), v.resolve_neg()
    kernel = _kernel(v, dim, decay, q, k, k_enc, v_enc)
    parts = 1
    if kernel != GENERIC:
        rows = batch * heads * (-(-head_dim // HOPPER_COLUMNS) if kernel == HOPPER else 1)
        parts = segments(rows, length, facts(v.device.index)[0])
    parts_enc = 0
    if k_enc is not None and v_enc is not None:
        if kernel != HOPPER or not k_enc.numel() or not v.numel():
            kv, k_sum = _encode(k_enc, v_enc, mask_enc)
            k_enc = v_enc = mask_enc = None
        elif parts > 1:
            parts_enc = encoder_segments(k_enc.shape[1], length, parts)
    y = v.new_empty(v.shape if q is not None else (0,))
    denominator = v.new_empty(v.shape[:3] if normaliser else (0,), dtype=torch.float32)
    kv_out = v.new_empty((batch, heads, n, head_dim), dtype=torch.float32)
    k_out = v.new_empty((batch, heads, n), dtype=torch.float32)
    if v.numel() == 0 or k.numel() == 0:
        kv_out = kv_out.zero_() if kv is None else kv_out.copy_(kv)
        k_out = k_out.zero_() if k_sum is None else k_out.copy_(k_sum)
        return y, kv_out, k_out, denominator
    sums = (parts_enc + parts) * n * (head_dim + 1) if parts > 1 else 0
    with torch.cuda.device(v.device):
        _c.taylor_linear_attention(
            q=q, k=k, v=v, k_enc=k_enc, v_enc=v_enc, kv=single(kv), k_sum=single(k_sum), mask=single(mask),
            mask_enc=single(mask_enc), decay=single(decay), y=y, denominator=denominator, kv_out=kv_out, k_sum_out=k_out,
            scratch=v.new_empty(batch * heads * sums, dtype=torch.float32), segments=parts, segments_enc=parts_enc,
            kernel=kernel, stream=stream(v),
        )  # fmt: skip
    return y, kv_out, k_out, denominator


def _prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv: Tensor | None,
    k_sum: Tensor | None,
    mask: Tensor | None,
    decay: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _linear(q, k, v, kv, k_sum, mask, decay, True)


def _encode(k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    _, kv, k_sum, _ = _linear(None, k, v, None, None, mask, None, False)
    return kv, k_sum


def _gradients(k: Tensor, v: Tensor) -> Any:
    """The module that computes Taylor linear attention's gradients for these sizes."""
    most = TRITON_SINGLE_FEATURE_DIM if v.dtype == torch.float32 else TRITON_FEATURE_DIM
    small = k.shape[-1] <= most and v.shape[-1] <= TRITON_HEAD_DIM
    return (triton_module("jrt_eval.kernels.taylor_linear_attention.triton") if small else None) or backward


def _prefill_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv: Tensor | None,
    k_sum: Tensor | None,
    mask: Tensor | None,
    y: Tensor,
    denominator: Tensor,
    grad_y: Tensor,
    grad_kv: Tensor,
    grad_k_sum: Tensor,
) -> tuple[Tensor, ...]:
    k, v = unmasked(k, mask), unmasked(v, mask)
    with torch.cuda.device(v.device):
        found = _gradients(k, v).taylor_backward(q, k, v, kv, k_sum, mask, y, denominator, grad_y, grad_kv, grad_k_sum)
    return tuple(x.contiguous() for x in found)


def _encode_backward(
    k: Tensor, v: Tensor, mask: Tensor | None, grad_kv: Tensor, grad_k_sum: Tensor
) -> tuple[Tensor, Tensor]:
    k, v = unmasked(k, mask), unmasked(v, mask)
    with torch.cuda.device(v.device):
        gk, gv = _gradients(k, v).encode_backward(k, v, mask, grad_kv, grad_k_sum)
    return gk, gv


def _step(q: Tensor, k: Tensor, v: Tensor, kv: Tensor, k_sum: Tensor, decay: Tensor | None) -> Tensor:
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    if y.numel() == 0:
        return y
    with torch.cuda.device(v.device):
        try:
            _c.taylor_linear_attention_step(
                q=q, k=k, v=v, kv=kv, k_sum=k_sum, decay=single(decay), y=y, stream=stream(v)
            )
        except ValueError as error:  # overlapping tensors
            raise UserError(str(error)) from None
    if _grad_enabled():
        increment_version((kv, k_sum))
    return y


schema.taylor_linear_attention.implement("CUDA", _prefill)
schema.taylor_linear_attention_backward.implement("CUDA", _prefill_backward)
schema.encode_prefix.implement("CUDA", _encode)
schema.encode_prefix_backward.implement("CUDA", _encode_backward)
schema.taylor_linear_attention_step.implement("CUDA", _step)


def taylor_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, state: TaylorState | None, mask: Tensor | None, decay: Tensor | None
) -> tuple[Tensor, TaylorState]:
    kv, k_sum = (None, None) if state is None else state
    gradient = learns(q, k, v, kv, k_sum, decay)
    if not fits(v, k.shape[3], True, decay):
        return reference.taylor_linear_attention(q, k, v, state, mask, decay)
    if gradient or _compiling():
        y, kv_out, k_out, _ = schema.taylor_linear_attention.call(q, k, v, kv, k_sum, mask, decay)
    else:
        y, kv_out, k_out, _ = _linear(q, k, v, kv, k_sum, mask, decay, False)
    return y, TaylorState(kv_out, k_out)


def prefix_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_enc: Tensor,
    v_enc: Tensor,
    mask: Tensor | None,
    mask_enc: Tensor | None,
    decay: Tensor | None,
) -> tuple[Tensor, TaylorState]:
    if _compiling() or learns(q, k, v, k_enc, v_enc, decay) or not fits(v, k.shape[3], True, decay):
        return taylor_linear_attention(q, k, v, encode_prefix(k_enc, v_enc, mask_enc), mask, decay)
    y, kv_out, k_out, _ = _linear(q, k, v, None, None, mask, decay, False, (k_enc, v_enc, mask_enc))
    return y, TaylorState(kv_out, k_out)


def encode_prefix(k: Tensor, v: Tensor, mask: Tensor | None) -> TaylorState:
    if not fits(v, k.shape[3], True):
        return reference.encode_prefix(k, v, mask)
    return TaylorState(*(schema.encode_prefix.call if learns(k, v) or _compiling() else _encode)(k, v, mask))


def taylor_linear_attention_step(q: Tensor, k: Tensor, v: Tensor, state: TaylorState, decay: Tensor | None) -> Tensor:
    kv, k_sum = state
    exact = kv.dtype == torch.float32 and k_sum.dtype == torch.float32
    if not exact or q.shape[-1] > STEP_FEATURE_DIM or v.shape[-1] > STEP_HEAD_DIM:
        return reference.taylor_linear_attention_step(q, k, v, state, decay)
    if _compiling():
        y: Tensor = schema.taylor_linear_attention_step.call(q, k, v, kv, k_sum, decay)
        return y
    return step_on_views(_step, slice(3, 5), q, k, v, kv, k_sum, decay)
