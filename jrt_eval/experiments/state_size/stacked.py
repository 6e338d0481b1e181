"""The small models of the set-disjointness experiment (JRT paper, figure 2), many of one shape trained as one.

A model has four layers that alternate a gated short convolution (width 3) and linear attention with the second-order
Taylor feature map, two heads, a GeLU MLP after each layer, RMS norms, no position embedding, and a head tied to the
embeddings. `Stack` has several such models, its copies, which differ only in their weights. They are the first dimension
of every tensor, so that one kernel launch serves all of them. A position of a causal model sees the positions up to
itself; a position of a non-causal model sees the whole sequence, in the sums of the attention and in the convolution.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jrt_eval.data.set_disjointness import BETWEEN
from jrt_eval.kernels.taylor_linear_attention.features import feature_map, num_features
from jrt_eval.kernels.taylor_linear_attention.parallel import encode_prefix

LAYERS, HEADS, CONVOLUTION, HIDDEN = 4, 2, 3, 4
CHUNK = 32
EPS = 1e-6


def state_bytes(width: int, feature_dim: int) -> int:
    """Bytes of the recurrent state in float32: both sums of each linear attention, the inputs of each convolution."""
    attention = HEADS * num_features(feature_dim) * (width // HEADS + 1)
    convolution = (CONVOLUTION - 1) * width
    return LAYERS // 2 * (attention + convolution) * 4


class Stack(nn.Module):
    """`len(seeds)` models of one shape. tokens (copies, batch, length) -> logits (copies, batch, vocabulary).

    marked: a token's embedding tells which of the two sets it is in, that is whether BETWEEN came before.
    sharp: the initial weights of the last norm. With 1 the initial logits are so flat that a model cannot name a token
        before these weights have grown.
    """

    def __init__(
        self,
        width: int,
        feature_dim: int,
        vocabulary: int,
        seeds: list[int],
        *,
        causal: bool,
        marked: bool = False,
        sharp: float = 1.0,
    ) -> None:
        super().__init__()
        if width % HEADS:
            raise ValueError(f"a width of {width} does not split into {HEADS} heads")
        self.width, self.feature_dim, self.vocabulary, self.causal = width, feature_dim, vocabulary, causal
        copies = len(seeds)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def weight(*shape: int, std: float) -> nn.Parameter:
            return nn.Parameter(torch.stack([torch.randn(*shape, generator=g) * std for g in generators]))

        def ones() -> nn.Parameter:
            return nn.Parameter(torch.ones(copies, 1, 1, width))

        features = HEADS * feature_dim
        inward, outward = width**-0.5, width**-0.5 / math.sqrt(2 * LAYERS)
        self.embedding = weight(vocabulary, width, std=inward)  # tied: logits begin with a variance of 1
        self.last_norm = ones()
        nn.init.constant_(self.last_norm, sharp)
        self.layers = nn.ModuleList()
        for index in range(LAYERS):
            layer = nn.Module()
            if index % 2 == 0:
                layer.inward = weight(width, 2 * width, std=inward)
                layer.taps = weight(CONVOLUTION, width, std=CONVOLUTION**-0.5)
            else:
                layer.inward = weight(width, 2 * features + width, std=inward)
            layer.outward = weight(width, width, std=outward)
            layer.up = weight(width, HIDDEN * width, std=inward)
            layer.down = weight(HIDDEN * width, width, std=outward / math.sqrt(HIDDEN))
            layer.norm1, layer.norm2 = ones(), ones()
            self.layers.append(layer)
        self.marks = weight(2, width, std=inward) if marked else None

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits at the last position, float32."""
        copies = tokens.shape[0]
        offsets = torch.arange(copies, device=tokens.device)[:, None, None] * self.vocabulary
        x = _rows(self.embedding, tokens + offsets)
        if self.marks is not None:
            behind = (tokens == BETWEEN).cumsum(-1).clamp(max=1)
            x = x + torch.where(behind[..., None] > 0, self.marks[:, None, None, 1], self.marks[:, None, None, 0])
        for index, layer in enumerate(self.layers):
            mixer = self._convolution if index % 2 == 0 else self._attention
            x = x + mixer(layer, _norm(x, layer.norm1))  # type: ignore[arg-type]
            hidden = F.gelu(_product(_norm(x, layer.norm2), layer.up))  # type: ignore[arg-type]
            x = x + _product(hidden, layer.down)  # type: ignore[arg-type]
        last = _norm(x[:, :, -1:], self.last_norm)[:, :, 0]
        return last @ self.embedding.transpose(1, 2)

    def _convolution(self, layer: nn.Module, x: Tensor) -> Tensor:
        a, b = _product(x, layer.inward).chunk(2, -1)  # type: ignore[arg-type]
        before, behind = (CONVOLUTION - 1, 0) if self.causal else (CONVOLUTION // 2, CONVOLUTION // 2)
        padded, length = F.pad(a, (0, 0, before, behind)), x.shape[2]
        taps: Tensor = layer.taps[:, :, None, None]  # type: ignore[index]
        mixed = sum(padded[:, :, w : w + length] * taps[:, w] for w in range(CONVOLUTION))
        assert isinstance(mixed, Tensor)
        return _product(F.silu(mixed) * b, layer.outward)  # type: ignore[arg-type]

    def _attention(self, layer: nn.Module, x: Tensor) -> Tensor:
        """sum_j phi(q_i).phi(k_j) v_j / sum_j phi(q_i).phi(k_j), over j <= i if causal; phi.phi = 1 + s + s^2/2."""
        features = HEADS * self.feature_dim
        q, k, v = _product(x, layer.inward).split([features, features, self.width], -1)  # type: ignore[arg-type]
        q, k, v = (t.unflatten(-1, (HEADS, -1)).flatten(0, 1) for t in (q, k, v))
        if self.causal:
            y = causal_attention(q, k, v)
        else:
            fq, (kv, total) = feature_map(q), encode_prefix(k, v, None)
            y = torch.einsum("blhf,bhfd->blhd", fq, kv) / torch.einsum("blhf,bhf->blh", fq, total)[..., None]
        y = y.unflatten(0, x.shape[:2]).flatten(3)
        return _product(y, layer.outward)  # type: ignore[arg-type]


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal Taylor linear attention of (batch, length, heads, dim), in chunks, for few features.

    The scores within a chunk are products of features. With few features, this with chunks of 32 costs a fraction of
    1 + s + s^2/2 with chunks of 64, which suits the models' 16 dimensions better.
    """
    length = q.shape[1]
    extra = -length % CHUNK
    values = F.pad(torch.cat([v, torch.ones_like(v[..., :1])], -1), (0, 0, 0, 0, 0, extra))
    fq, fk = (feature_map(F.pad(t, (0, 0, 0, 0, 0, extra))) for t in (q, k))
    fq, fk, values = (t.unflatten(1, (-1, CHUNK)).transpose(2, 3) for t in (fq, fk, values))
    sums = fk.transpose(-1, -2) @ values  # (batch, chunks, heads, features, dim + 1); padding adds zeros
    both = (fq @ fk.transpose(-1, -2)).tril() @ values + fq @ (sums.cumsum(1) - sums)
    return (both[..., :-1] / both[..., -1:]).transpose(2, 3).flatten(1, 2)[:, :length]


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table (copies, rows, width). Its gradient needs neither sorting nor the host, so a CUDA graph can capture it."""
    return table.flatten(0, 1).index_select(0, index.flatten()).unflatten(0, index.shape)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x (copies, batch, length, in) times weight (copies, in, out)."""
    return (x.flatten(1, 2) @ weight).unflatten(1, x.shape[1:3])


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight


class StackedAdamW:
    """AdamW with a learning rate for each copy, rates (copies,), and no weight decay on norms.

    The parameters become views of one flat tensor, so that an update takes about twenty kernel launches. The powers of
    the betas, which correct the moments' bias, are tensors, so that they change in a captured update too.
    """

    def __init__(
        self, model: nn.Module, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.1
    ) -> None:
        self.parameters = list(model.parameters())
        self.betas, self.eps = betas, eps
        device = self.parameters[0].device
        self.flat = torch.cat([p.detach().flatten() for p in self.parameters])
        for part, p in zip(self.flat.split([p.numel() for p in self.parameters]), self.parameters, strict=True):
            p.data = part.view_as(p)
        self.decay = torch.cat(
            [
                torch.full((p.numel(),), 0.0 if "norm" in name else weight_decay, device=device)
                for name, p in model.named_parameters()
            ]
        )
        copies = [torch.arange(len(p), device=device).repeat_interleave(p[0].numel()) for p in self.parameters]
        self.copy = torch.cat(copies)  # whose each number is
        self.first, self.second = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self.powers = [torch.ones((), dtype=torch.float64, device=device) for _ in betas]

    def state(self) -> list[Tensor]:
        """All that an update changes."""
        return [self.flat, self.first, self.second, *self.powers]

    @torch.no_grad()
    def step(self, rates: Tensor) -> None:
        """Update the parameters from their gradients, which are then cleared."""
        one, two = self.betas
        for power, beta in zip(self.powers, self.betas, strict=True):
            power.mul_(beta)
        grads = torch.cat([p.grad.flatten() for p in self.parameters if p.grad is not None])
        self.first.lerp_(grads, 1 - one)
        self.second.mul_(two).addcmul_(grads, grads, value=1 - two)
        deep = (self.second / (1 - self.powers[1])).sqrt_().add_(self.eps)
        rate = rates[self.copy]
        self.flat.mul_(1 - rate * self.decay)
        self.flat.sub_(rate * self.first / deep / (1 - self.powers[0]))
        for parameter in self.parameters:
            parameter.grad = None
