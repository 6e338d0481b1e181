"""The small models of the set-disjointness experiment, many of one shape trained as one (JRT paper, figure 2).

A model has four layers that alternate a gated short convolution (width 3) and linear attention with the second-order
Taylor feature map, two heads, a GeLU MLP after each, RMS norms and no position embedding; the head is tied to the
embeddings. `Stack` holds `copies` models that differ in their weights alone: every tensor has them as its first
dimension, so that one launch serves all of them. Causal models see what came before; non-causal ones see the whole
sequence, in the attention's sums and in the convolution.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jrt_eval.kernels.features import feature_map, num_features
from jrt_eval.training.parallel import encode_prefix, taylor_linear_attention

LAYERS, HEADS, CONVOLUTION, HIDDEN = 4, 2, 3, 4
EPS = 1e-6


def state_bytes(width: int, feature_dim: int) -> int:
    """Bytes of the recurrent state in float32: both sums of each linear attention, the inputs of each convolution."""
    attention = HEADS * num_features(feature_dim) * (width // HEADS + 1)
    convolution = (CONVOLUTION - 1) * width
    return LAYERS // 2 * (attention + convolution) * 4


class Stack(nn.Module):
    """`len(seeds)` models of one shape. tokens (copies, batch, length) -> logits (copies, batch, vocabulary)."""

    def __init__(self, width: int, feature_dim: int, vocabulary: int, seeds: list[int], *, causal: bool) -> None:
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

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits at the last position, float32."""
        copies = tokens.shape[0]
        offsets = torch.arange(copies, device=tokens.device)[:, None, None] * self.vocabulary
        x = F.embedding(tokens + offsets, self.embedding.flatten(0, 1))
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
        """sum_j phi(q_i).phi(k_j) v_j / sum_j phi(q_i).phi(k_j), over j <= i where causal, with phi.phi = 1 + s + s^2/2."""
        features = HEADS * self.feature_dim
        q, k, v = _product(x, layer.inward).split([features, features, self.width], -1)  # type: ignore[arg-type]
        q, k, v = (t.unflatten(-1, (HEADS, -1)).flatten(0, 1) for t in (q, k, v))
        if self.causal:
            y, _ = taylor_linear_attention(q, k, v, None, None, None)
        else:
            fq, (kv, total) = feature_map(q), encode_prefix(k, v, None)
            y = torch.einsum("blhf,bhfd->blhd", fq, kv) / torch.einsum("blhf,bhf->blh", fq, total)[..., None]
        y = y.unflatten(0, x.shape[:2]).flatten(3)
        return _product(y, layer.outward)  # type: ignore[arg-type]


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x (copies, batch, length, in) times weight (copies, in, out)."""
    return (x.flatten(1, 2) @ weight).unflatten(1, x.shape[1:3])


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight


class StackedAdamW:
    """AdamW whose copies have a learning rate each: rates (copies,). No decay on norms' weights."""

    def __init__(
        self, model: nn.Module, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.1
    ) -> None:
        self.parameters = list(model.parameters())
        self.betas, self.eps, self.count = betas, eps, 0
        self.decays = [0.0 if "norm" in name else weight_decay for name, _ in model.named_parameters()]
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, rates: Tensor) -> None:
        """One update from the parameters' gradients, which are cleared."""
        self.count += 1
        one, two = self.betas
        grads = [p.grad for p in self.parameters if p.grad is not None]
        torch._foreach_lerp_(self.first, grads, 1 - one)
        torch._foreach_mul_(self.second, two)
        torch._foreach_addcmul_(self.second, grads, grads, 1 - two)
        deep = torch._foreach_div(self.second, 1 - two**self.count)
        torch._foreach_sqrt_(deep)
        torch._foreach_add_(deep, self.eps)
        steps = torch._foreach_div(self.first, deep)
        torch._foreach_div_(steps, 1 - one**self.count)
        for parameter, step, decay in zip(self.parameters, steps, self.decays, strict=True):
            rate = rates.view(-1, *[1] * (parameter.dim() - 1))
            parameter.mul_(1 - rate * decay).sub_(rate * step)
            parameter.grad = None
