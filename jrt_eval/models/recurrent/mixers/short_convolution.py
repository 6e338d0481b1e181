"""Gated short convolution: y = out_proj(silu(conv(a)) * b), where [a; b] = in_proj(x)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from jrt_eval import kernels
from jrt_eval.models.interface import StateBytes
from jrt_eval.models.recurrent.mixers.base import Call, Mixer, MixerConfig, ModelFacts, Shape, no_autocast
from jrt_eval.models.recurrent.reading import Section


@dataclass(frozen=True)
class ShortConvolutionConfig(MixerConfig):
    kind: ClassVar[str] = "convolution"

    bias: bool = True  # of in_proj and out_proj
    expand: int | None = 4  # in_proj maps d to expand * d; None: known from the weights only
    kernel_size: int = 3
    conv_bias: bool = False  # known from the weights only

    @classmethod
    def read(cls, section: Section, facts: ModelFacts) -> ShortConvolutionConfig:
        section.get("conv_bias")
        result = cls(
            bias=section.flag("use_bias", True),
            expand=section.integer("expand_proj", high=1024),
            kernel_size=section.integer("kernel_size", 3, high=4096),
        )
        if (result.expand or 0) * facts.d_model % 2:
            raise section.error(
                f"expand_proj {result.expand} times n_embd {facts.d_model} is odd, it must split in two"
            )
        return result

    def complete(self, shape_of: Callable[[str], Shape | None]) -> MixerConfig:
        in_proj = shape_of("in_proj.weight")  # (expand * d, d)
        expand = in_proj[0] // in_proj[1] if self.expand is None and in_proj and in_proj[-1] else self.expand
        return replace(self, expand=expand, conv_bias=shape_of("conv.conv.bias") is not None)

    def build(self, d_model: int) -> Mixer:
        return ShortConvolution(d_model, self)


class ShortConvolution(Mixer):
    """conv is depthwise and causal. State: the last kernel_size - 1 inputs of conv (batch, channels, kernel_size - 1)."""

    def __init__(self, dim: int, config: ShortConvolutionConfig) -> None:
        super().__init__()
        inner = (4 if config.expand is None else config.expand) * dim // 2
        self.in_proj = nn.Linear(dim, 2 * inner, bias=config.bias)
        self.conv = nn.Module()  # the released files name it conv.conv
        self.conv.conv = nn.Conv1d(inner, inner, config.kernel_size, groups=inner, bias=config.conv_bias)
        self.out_proj = nn.Linear(inner, dim, bias=config.bias)

    def forward(self, x: Tensor, state: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
        a, b = self.in_proj(x).chunk(2, -1)
        conv: Any = self.conv.conv
        with no_autocast(x):
            y, state = kernels.short_conv(
                a, conv.weight, conv.bias, state, gate=b, lengths=call.lengths, backend=call.backend
            )
        return self.out_proj(y), state

    def step(self, x: Tensor, state: Tensor, call: Call) -> Tensor:
        a, b = self.in_proj(x).chunk(2, -1)
        conv: Any = self.conv.conv
        with no_autocast(x):
            y = kernels.short_conv_step(a, conv.weight, conv.bias, state, gate=b, backend=call.backend)
        out: Tensor = self.out_proj(y)
        return out

    def state_bytes(self, length: int, itemsize: int) -> StateBytes:
        conv: Any = self.conv.conv
        return StateBytes(convolution=int((conv.kernel_size[0] - 1) * conv.in_channels * 4))
