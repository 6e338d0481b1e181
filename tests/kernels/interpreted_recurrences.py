"""The Triton kernels of selective_scan, ssd and short_conv in Triton's interpreter, against the formulas. Run by test_interpreted.

Triton's interpreter is chosen before triton is imported, so this is a process of its own. Prints the worst error of each kernel.
"""

from __future__ import annotations

import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import kernel_oracle
import recurrence_oracle as oracle
import torch
from recurrence_oracle import error
from torch import Tensor

from jrt_eval.kernels.selective_scan import triton as scan
from jrt_eval.kernels.short_conv import triton as conv
from jrt_eval.kernels.ssd import triton as ssd

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}
NAMES = ("x", "dt", "a", "b", "c", "d", "z", "dt_bias", "state")


def recurrences(worst: dict[str, float]) -> None:
    scan.SHORTEST = 32  # several segments of few tokens
    forms: dict[str, tuple[Any, list[Any]]] = {
        "selective_scan": (scan, [
            oracle.scan_inputs(2, 0, 5, 3), oracle.scan_inputs(1, 1, 16, 16), oracle.scan_inputs(2, 65, 33, 16),
            oracle.scan_inputs(1, 130, 70, 13, 2), oracle.scan_inputs(2, 40, 7, 1, plain=True),
        ]),
        "ssd": (ssd, [
            oracle.ssd_inputs(2, 0, 2, 5, 3), oracle.ssd_inputs(1, 1, 1, 16, 16), oracle.ssd_inputs(2, 65, 3, 33, 16, per_dim=True),
            oracle.ssd_inputs(2, 150, 4, 64, 128, 2), oracle.ssd_inputs(1, 70, 6, 9, 130, 3, plain=True),
        ]),
    }  # fmt: skip
    for name, (module, cases) in forms.items():
        for number, case in enumerate(cases):
            for dtype, tolerance in TOLERANCE.items():
                inputs = oracle.cast(case, dtype)
                limits = inputs.get("dt_limit", ())
                batch, length = inputs["x"].shape[:2]
                lengths = torch.tensor([length, length // 3][:batch]) if number % 2 else None
                want = oracle.recurrence(inputs, lengths)
                arguments = [inputs[key] for key in NAMES]
                got = getattr(module, name)(*arguments, lengths, inputs["softplus"], *limits)
                check(worst, name, dtype, got, want, tolerance)
                if length:
                    now = oracle.token(inputs, 0)
                    state = torch.zeros_like(got[1]) if inputs["state"] is None else inputs["state"].clone()
                    arguments = [now[key] for key in NAMES[:-1]] + [state]
                    y = getattr(module, f"{name}_step")(*arguments, inputs["softplus"], *limits)
                    first = oracle.recurrence(oracle.tokens(inputs, 0, 1))
                    check(worst, f"{name}_step", dtype, (y[:, None], state), first, tolerance)


def convolution(worst: dict[str, float]) -> None:
    for number, (length, channels, width) in enumerate(
        [(0, 5, 4), (1, 5, 4), (2, 70, 4), (70, 65, 3), (33, 9, 1), (40, 8, 7)]
    ):
        for dtype, tolerance in TOLERANCE.items():
            g = torch.Generator().manual_seed(number)
            both = torch.randn(2, length + width - 1, 2 * channels, generator=g).to(dtype)
            x, gate = both[:, width - 1 :].chunk(2, -1)
            state = both[:, : width - 1, :channels].float().clone(memory_format=torch.contiguous_format)
            weight, bias = (
                torch.randn(channels, width, generator=g).to(dtype),
                torch.randn(channels, generator=g).to(dtype),
            )
            gate_or_none, silu = (gate if number % 2 else None), number % 3 != 2
            lengths = torch.tensor([length, length // 2])
            y, last = conv.short_conv(x, gate_or_none, weight, bias, state, lengths, silu)
            ones = torch.ones(2, width - 1, channels)
            full_gate = None if gate_or_none is None else torch.cat([ones.to(dtype), gate], 1)
            want = kernel_oracle.conv(both[..., :channels], full_gate, weight, bias, silu)[:, width - 1 :]
            rows = [both[row, count : count + width - 1, :channels] for row, count in enumerate(lengths.tolist())]
            check(worst, "short_conv", dtype, (y, last), (want, torch.stack(rows)), tolerance)
            if length:
                now = None if gate_or_none is None else gate[:, 0]
                y = conv.short_conv_step(x[:, 0], now, weight, bias, state, silu)
                after = both[:, 1:width, :channels]
                check(worst, "short_conv_step", dtype, (y, state), (want[:, 0], after), tolerance)


def check(worst: dict[str, float], name: str, dtype: torch.dtype, got: Any, want: Any, tolerance: float) -> None:
    def gap(one: Tensor, other: Tensor) -> float:
        return error(one, other) if other.numel() else float(one.numel())

    found = max(gap(one, other) for one, other in zip(got, want, strict=True))
    key = f"{name} {str(dtype).removeprefix('torch.')}"
    worst[key] = max(worst.get(key, 0.0), found)
    assert found < tolerance, (name, dtype, found)


def main() -> None:
    worst: dict[str, float] = {}
    recurrences(worst)
    convolution(worst)
    for name, found in worst.items():
        print(f"{name:30} {found:.1e}")


if __name__ == "__main__":
    main()
