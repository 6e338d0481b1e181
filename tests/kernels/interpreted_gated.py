"""The Triton kernels of the gated operators in Triton's interpreter, against the float64 reference. Run by test_interpreted.

Triton's interpreter is chosen before triton is imported, so this is a process of its own. Prints the worst error of each kernel.
"""

from __future__ import annotations

import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from test_gated import double, inputs

from jrt_eval.kernels import gated_delta_rule, gated_linear_attention
from jrt_eval.kernels.gated_delta_rule import triton as delta
from jrt_eval.kernels.gated_linear_attention import triton as linear

TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3}
# batch, length, key heads, heads, key dim, head dim
SHAPES = [(2, 0, 1, 1, 4, 8), (2, 2, 1, 3, 16, 33), (2, 40, 1, 2, 20, 100), (1, 65, 2, 2, 33, 16)]


def main() -> None:
    worst: dict[str, float] = {}
    for number, shape in enumerate(SHAPES):
        for gate in ("none", "head", "channel"):
            for dtype, tolerance in TOLERANCE.items():
                for module, operator in ((linear, gated_linear_attention), (delta, gated_delta_rule)):
                    name = operator.__name__
                    given = inputs(shape, gate, dtype, delta=module is delta, strided=number == 1)
                    if number == 2:
                        given["state"] = None
                    lengths = torch.tensor([shape[1], shape[1] // 3][: shape[0]]) if number % 2 else None
                    scale = shape[4] ** -0.5
                    got = getattr(module, name)(*arguments(given), scale, lengths)
                    want = operator(**double(given), lengths=lengths, backend="torch")
                    check(worst, name, dtype, got, want, tolerance)
                    if shape[1] and given["state"] is not None:
                        token = {key: x if key == "state" or x is None else x[:, 0] for key, x in given.items()}
                        y = getattr(module, f"{name}_step")(*arguments(token), scale)
                        first = {key: x if key == "state" or x is None else x[:, :1] for key, x in given.items()}
                        first["state"] = inputs(shape, gate, dtype, delta=module is delta, strided=number == 1)["state"]
                        want = operator(**double(first), backend="torch")
                        check(worst, f"{name}_step", dtype, (y[:, None], token["state"]), want, tolerance)
    for name, found in worst.items():
        print(f"{name:40} {found:.1e}")


def arguments(given: dict[str, Any]) -> list[Any]:
    names = ("q", "k", "v", "g", "beta", "state") if "beta" in given else ("q", "k", "v", "g", "state")
    return [given[name] for name in names]


def check(worst: dict[str, float], name: str, dtype: torch.dtype, got: Any, want: Any, tolerance: float) -> None:
    found = 0.0
    for one, other in zip(got, want, strict=True):
        assert one.shape == other.shape, (name, one.shape, other.shape)
        if one.numel():
            found = max(found, float((one.double() - other).abs().max()) / max(1.0, float(other.abs().max())))
    key = f"{name} {str(dtype).removeprefix('torch.')}"
    worst[key] = max(worst.get(key, 0.0), found)
    assert found < tolerance, (name, dtype, found)


if __name__ == "__main__":
    main()
