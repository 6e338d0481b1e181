"""Every operator in plain PyTorch: the specification, the fallback on any device, and differentiable by autograd.

The linear forms walk over chunks of 64 tokens: inside a chunk the scores are formed (64 x 64), between chunks the state carries
what came before. Nothing of size length x length or length x features x head_dim is ever held; time is linear in length.
Shapes are those of the public functions in `jrt_eval.kernels`, which check the arguments.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jrt_eval.kernels.features import feature_map, num_features
from jrt_eval.kernels.states import TaylorState, WindowState

CHUNK = 64
EPS = 1e-12


def _wide(x: Tensor) -> torch.dtype:
    """What sums are held in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _heads_first(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(batch, length, heads, dim) -> (batch, heads, length, dim), wide."""
    return x.transpose(1, 2).to(dtype)


def taylor_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, state: TaylorState | None, mask: Tensor | None, decay: Tensor | None
) -> tuple[Tensor, TaylorState]:
    wide = _wide(v)
    batch, length, heads, head_dim = v.shape
    n = num_features(q.shape[-1])
    out_dtype = v.dtype
    q, k, v = _heads_first(q, wide), _heads_first(k, wide), _heads_first(v, wide)
    if state is None:
        kv = v.new_zeros(batch, heads, n, head_dim)
        k_sum = v.new_zeros(batch, heads, n)
    else:
        kv, k_sum = state.kv.to(wide), state.k.to(wide)
    weight = None if mask is None else mask.to(wide)[:, None, :, None]  # (batch, 1, length, 1)
    scale = q.shape[-1] ** -0.5
    rate = None if decay is None else decay.to(wide)[:, None]  # (heads, 1)
    ys = []
    for start in range(0, length, CHUNK):
        at = slice(start, min(start + CHUNK, length))
        qc, kc, vc = q[:, :, at], k[:, :, at], v[:, :, at]
        s = qc @ kc.transpose(-1, -2) * scale
        p = (1 + s + 0.5 * s * s).tril()
        fq, fk = feature_map(qc), feature_map(kc)
        if weight is not None:
            p = p * weight[:, :, at].transpose(-1, -2)
            fk = fk * weight[:, :, at]
        denominator = p.sum(-1, keepdim=True) + fq @ k_sum[..., None]
        if rate is None:
            numerator = p @ vc + fq @ kv
            kv = kv + fk.transpose(-1, -2) @ vc
        else:
            # A masked position does not count: decay goes by the number of tokens between i and j.
            if weight is None:
                age = torch.arange(1, qc.shape[2] + 1, device=v.device, dtype=wide).expand(batch, 1, -1)
            else:
                age = (weight[:, :, at, 0] != 0).to(wide).cumsum(-1)  # (batch, 1, chunk)
            gap = (age[..., :, None] - age[..., None, :]).clamp(min=0)
            numerator = (p * rate[..., None] ** gap) @ vc + (rate**age)[..., None] * (fq @ kv)
            last = age[..., -1:]
            kv = (rate**last)[..., None] * kv + (fk * (rate ** (last - age))[..., None]).transpose(-1, -2) @ vc
        ys.append(numerator / (denominator + EPS))
        k_sum = k_sum + fk.sum(-2)
    y = torch.cat(ys, 2) if ys else v
    if state is not None and not ys:
        kv, k_sum = kv.clone(), k_sum.clone()
    return y.transpose(1, 2).to(out_dtype), TaylorState(kv, k_sum)


def encode_prefix(k: Tensor, v: Tensor, mask: Tensor | None) -> TaylorState:
    wide = _wide(v)
    k, v = _heads_first(k, wide), _heads_first(v, wide)
    n = num_features(k.shape[-1])
    kv = v.new_zeros(*v.shape[:2], n, v.shape[-1])
    k_sum = v.new_zeros(*v.shape[:2], n)
    step = 4 * CHUNK  # no scores here, so larger pieces
    for start in range(0, k.shape[2], step):
        fk = feature_map(k[:, :, start : start + step])
        if mask is not None:
            fk = fk * mask[:, None, start : start + step, None].to(wide)
        kv = kv + fk.transpose(-1, -2) @ v[:, :, start : start + step]
        k_sum = k_sum + fk.sum(-2)
    return TaylorState(kv, k_sum)


@torch.no_grad()
def taylor_step(q: Tensor, k: Tensor, v: Tensor, state: TaylorState, decay: Tensor | None) -> Tensor:
    wide = state.kv.dtype
    fq, fk = feature_map(q.to(wide)), feature_map(k.to(wide))
    if decay is not None:
        state.kv.mul_(decay.to(wide)[:, None, None])
    state.kv.addcmul_(fk[..., None], v.to(wide)[..., None, :])
    state.k.add_(fk)
    numerator = (fq[..., None, :] @ state.kv)[..., 0, :]
    denominator = (fq * state.k).sum(-1, keepdim=True)
    return (numerator / (denominator + EPS)).to(v.dtype)


def causal_dot_product(q: Tensor, k: Tensor, v: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    wide = _wide(v)
    out_dtype = v.dtype
    q, k, v = _heads_first(q, wide), _heads_first(k, wide), _heads_first(v, wide)
    kv = v.new_zeros(*v.shape[:2], q.shape[-1], v.shape[-1]) if state is None else state.to(wide)
    ys = []
    for start in range(0, q.shape[2], CHUNK):
        qc, kc, vc = (x[:, :, start : start + CHUNK] for x in (q, k, v))
        ys.append((qc @ kc.transpose(-1, -2)).tril() @ vc + qc @ kv)
        kv = kv + kc.transpose(-1, -2) @ vc
    y = torch.cat(ys, 2) if ys else v
    if state is not None and not ys:
        kv = kv.clone()
    return y.transpose(1, 2).to(out_dtype), kv


def token_counts(lengths: Tensor | None, like: Tensor) -> Tensor:
    if lengths is None:
        return torch.full((like.shape[0],), like.shape[1], dtype=torch.int64, device=like.device)
    return lengths.to(device=like.device, dtype=torch.int64)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (batch, tokens, heads, dim) at index (batch, n), zeros where the index is negative."""
    at = index.clamp(min=0)[..., None, None].expand(-1, -1, x.shape[2], x.shape[3])
    return x.gather(1, at) * (index >= 0).to(x.dtype)[..., None, None]


def sliding_window_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, state: WindowState | None, lengths: Tensor | None
) -> tuple[Tensor, WindowState]:
    length, dim = q.shape[1], q.shape[3]
    wide = _wide(v)
    keys, values, past, seen = window_keys(k, v, window, state)
    y = []
    block = max(window // 2, CHUNK)
    for start in range(0, length, block):
        stop = min(start + block, length)
        low = max(start + past - window + 1, 0)
        i = torch.arange(start + past, stop + past, device=q.device)[:, None]
        j = torch.arange(low, stop + past, device=q.device)[None, :]
        sees = ((j <= i) & (j > i - window))[None] & (j[None] >= (past - seen)[:, None, None])
        y.append(
            F.scaled_dot_product_attention(
                _heads_first(q[:, start:stop], wide),
                _heads_first(keys[:, low : stop + past], wide),
                _heads_first(values[:, low : stop + past], wide),
                attn_mask=sees[:, None],
                scale=dim**-0.5,
            )
        )
    out = torch.cat(y, 2).transpose(1, 2).to(v.dtype) if y else v.clone()
    return out, window_ring(keys, values, window, past, seen, token_counts(lengths, q))


def window_keys(k: Tensor, v: Tensor, window: int, state: WindowState | None) -> tuple[Tensor, Tensor, int, Tensor]:
    """Keys and values with those of the state in front, oldest first: how many these are, and how many of them hold tokens."""
    if state is None:
        return k, v, 0, torch.zeros(k.shape[:1], dtype=torch.int64, device=k.device)
    order = state.length[:, None] - window + torch.arange(window, device=k.device)  # the last `window` tokens
    order = torch.where(order >= 0, order % window, -1)
    before_k, before_v = _take(state.k.to(k.dtype), order), _take(state.v.to(v.dtype), order)
    return torch.cat([before_k, k], 1), torch.cat([before_v, v], 1), window, state.length


def window_ring(keys: Tensor, values: Tensor, window: int, past: int, seen: Tensor, counts: Tensor) -> WindowState:
    """The state after `counts` more tokens of each row; the others are as `window_keys` returns them."""
    # Slot s holds the latest token t with t % window == s; among `keys` that is number t - seen + past.
    total = seen + counts
    token = total[:, None] - 1 - (total[:, None] - 1 - torch.arange(window, device=keys.device)) % window
    token = torch.where(token >= 0, token - seen[:, None] + past, -1)
    if keys.shape[1] == 0:
        ring = (keys.shape[0], window, *keys.shape[2:])
        return WindowState(keys.new_zeros(ring), values.new_zeros(ring), total)
    return WindowState(_take(keys, token), _take(values, token), total)


def window_write(k: Tensor, v: Tensor, state: WindowState) -> Tensor:
    """Put one token per row into the ring; which of its slots (batch, window) hold tokens then."""
    window = state.k.shape[1]
    slot = (state.length % window)[:, None, None, None].expand(-1, 1, *k.shape[1:])
    state.k.scatter_(1, slot, k[:, None].to(state.k.dtype))
    state.v.scatter_(1, slot, v[:, None].to(state.v.dtype))
    state.length.add_(1)
    return torch.arange(window, device=k.device) < state.length[:, None]


@torch.no_grad()
def sliding_window_step(q: Tensor, k: Tensor, v: Tensor, state: WindowState) -> Tensor:
    wide = _wide(v)
    held = window_write(k, v, state)
    y = F.scaled_dot_product_attention(
        q[:, :, None].to(wide),
        _heads_first(state.k, wide),
        _heads_first(state.v, wide),
        attn_mask=held[:, None, None],
        scale=q.shape[-1] ** -0.5,
    )
    return y[:, :, 0].to(v.dtype)


def gated_short_conv(
    a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    wide = _wide(a)
    width = weight.shape[-1]
    kernel = weight.reshape(weight.shape[0], width).to(wide)
    before = a.new_zeros(a.shape[0], width - 1, a.shape[2], dtype=wide) if state is None else state.to(wide)
    x = torch.cat([before, a.to(wide)], 1)
    length = a.shape[1]
    z = sum((x[:, w : w + length] * kernel[:, w] for w in range(1, width)), x[:, :length] * kernel[:, 0])
    if bias is not None:
        z = z + bias.to(wide)
    if lengths is None:
        last = x[:, length:].clone()
    else:
        at = lengths.to(torch.int64)[:, None] + torch.arange(width - 1, device=a.device)
        last = x.gather(1, at[..., None].expand(-1, -1, x.shape[2]))
    return (F.silu(z) * b.to(wide)).to(a.dtype), last


@torch.no_grad()
def gated_short_conv_step(a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> Tensor:
    wide = _wide(a)
    kernel = weight.reshape(weight.shape[0], weight.shape[-1]).to(wide)
    x = torch.cat([state.to(wide), a[:, None].to(wide)], 1)  # (batch, width, channels)
    z = (x * kernel.T).sum(1)
    if bias is not None:
        z = z + bias.to(wide)
    state.copy_(x[:, 1:])
    return (F.silu(z) * b.to(wide)).to(a.dtype)
