"""`nn.Linear` layers that multiply through oneDNN. An existing layer becomes one by a change of its class."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jrt_eval.kernels.memory import page_out

_is_autocast = torch.is_autocast_enabled
_is_compiling = torch.compiler.is_compiling


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., in) times weight (out, in), plain or packed, plus bias (out,). Not differentiable."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def pack(weight: Tensor) -> Tensor:
    """weight (out, in) in oneDNN's own layout, an opaque tensor of the same size; `.to_dense()` is the inverse."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed


def _multiplies(layer: OneDNNLinear, x: Tensor, weight: Tensor) -> bool:
    """Whether a call of `layer` can go through oneDNN: the layer's dtype, on the CPU, without autocast and gradients."""
    return (
        x.dtype is layer._dtype
        and weight.dtype is layer._dtype
        and x.device.type == "cpu"
        and not _is_autocast("cpu")
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
    )


class OneDNNLinear(nn.Linear):
    """A linear layer that multiplies through oneDNN where no gradient is needed, with its weight left as it is."""

    _dtype: torch.dtype  # what oneDNN is known to multiply; `.to(dtype)` later may ask for others

    @staticmethod
    def convert(layer: nn.Linear) -> None:
        """Make `layer`, which has a float32 or bfloat16 weight, a `OneDNNLinear` in place."""
        layer.__dict__["_dtype"] = layer.weight.dtype
        layer.__class__ = OneDNNLinear

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if not _is_compiling() and _multiplies(self, x, weight):
            return onednn_linear(x, weight, self.bias)
        return F.linear(x, weight, self.bias)


class PackedLinear(OneDNNLinear):
    """A linear layer that holds its weight packed, for inference.

    `parameters()` still lists the weight with its shape and dtype, but without values: every element reads as NaN. Reading
    `layer.weight`, training mode, a forward call that needs gradients, `.to()` and `load_state_dict` unpack the layer, which
    from then on is a `OneDNNLinear` with the same Parameter object. State dicts, deep copies and pickles hold real values.
    """

    _packed: Tensor

    @staticmethod
    def convert(layer: nn.Linear) -> None:
        """Pack the weight of `layer` in place and release the original."""
        with torch.inference_mode(False), torch.no_grad():
            weight = layer.weight
            original = weight.detach()
            packed = pack(original)
            page_out(original)
            weight.data = torch.full((1, 1), float("nan"), dtype=weight.dtype).expand(weight.shape)
        layer.__dict__ |= {"_packed": packed, "_dtype": weight.dtype}
        layer.__class__ = PackedLinear

    def forward(self, x: Tensor) -> Tensor:
        if _is_compiling():
            return self._uncompiled(x)
        placeholder = self._parameters["weight"]
        assert placeholder is not None
        if _multiplies(self, x, placeholder):
            return onednn_linear(x, self._packed, self.bias)
        return F.linear(x, self.weight, self.bias)

    @torch.compiler.disable  # Inductor knows no packed tensors
    def _uncompiled(self, x: Tensor) -> Tensor:
        y: Tensor = self(x)
        return y

    def unpack(self) -> None:
        """Put the weight's values back into its Parameter."""
        with torch.inference_mode(False), torch.no_grad():
            self._parameters["weight"].data = self._dense()  # type: ignore[union-attr]
        del self.__dict__["_packed"]
        self.__class__ = OneDNNLinear  # type: ignore[assignment]

    def _dense(self) -> Tensor:
        return self._packed.to_dense()

    # Everything below reads or replaces the weight, and needs its values.

    @property
    def weight(self) -> nn.Parameter:  # type: ignore[override]
        self.unpack()
        return self._parameters["weight"]  # type: ignore[return-value]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            self.unpack()
        nn.Linear.__setattr__(self, name, value)

    def train(self, mode: bool = True) -> PackedLinear:
        if mode:
            self.unpack()
        return nn.Linear.train(self, mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.unpack()
        return nn.Linear._apply(self, fn, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if keep_vars:  # the caller wants the parameter itself
            self.unpack()
        nn.Linear._save_to_state_dict(self, destination, prefix, keep_vars)
        if not keep_vars:
            destination[prefix + "weight"] = self._dense()

    def _load_from_state_dict(self, *args: Any) -> None:
        self.unpack()
        nn.Linear._load_from_state_dict(self, *args)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_packed"]
        placeholder = self._parameters["weight"]
        assert placeholder is not None
        with torch.inference_mode(False):
            weight = nn.Parameter(self._dense(), requires_grad=placeholder.requires_grad)
        state["_parameters"] = {**self._parameters, "weight": weight}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__class__ = nn.Linear  # type: ignore[assignment]
        nn.Linear.__setstate__(self, state)  # type: ignore[arg-type]
        PackedLinear.convert(self)
