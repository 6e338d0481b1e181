"""The gated operators on a GPU: our Triton kernels, our chunks of PyTorch, and flash-linear-attention where it is installed.

    python benchmarks/bench_gated.py [--shapes 8x1000,32x2048,1x8192]

Prints milliseconds for gated linear attention with the shapes of GLA 1.3B (4 heads, keys of 256, values of 512) and for the gated delta
rule with those of Gated DeltaNet 1.3B (6 heads, keys of 256, values of 512), bfloat16, the same inputs; and a decode step.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from bench_recurrences import milliseconds
from torch import Tensor

from jrt_eval import kernels
from jrt_eval.models.recurrent.graphs import record

KEY, VALUE = 256, 512
HEADS = {"gated_linear_attention": 4, "gated_delta_rule": 6}


def arguments(operator: str, batch: int, length: int) -> dict[str, Any]:
    heads = HEADS[operator]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

    q, k, v = (normal(batch, length, heads, dim) for dim in (KEY, KEY, VALUE))
    if operator == "gated_linear_attention":  # a decay per key channel
        return {"q": q, "k": k, "v": v, "g": F.logsigmoid(normal(batch, length, heads, KEY).float()) / 16}
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    gate = -F.softplus(normal(batch, length, heads).float())
    return {"q": q, "k": k, "v": v, "g": gate, "beta": normal(batch, length, heads).sigmoid()}


def forms(operator: str, given: dict[str, Any]) -> dict[str, Callable[[], object]]:
    ours = getattr(kernels, operator)
    found: dict[str, Callable[[], object]] = {
        name: partial(ours, **given, backend=name) for name in ("triton", "parallel")
    }
    try:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
        from fla.ops.gla import chunk_gla
    except ImportError as error:
        print(f"flash-linear-attention: not measured ({error})")
        return found
    if operator == "gated_linear_attention":
        found["fla"] = partial(chunk_gla, given["q"], given["k"], given["v"], given["g"], output_final_state=True)
    else:
        found["fla"] = partial(chunk_gated_delta_rule, **given, output_final_state=True)
    return found


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="8x1000,32x2048,1x8192", help="batch x length")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU")
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for operator, heads in HEADS.items():
        for shape in given.shapes.split(","):
            batch, length = map(int, shape.split("x"))
            inputs = arguments(operator, batch, length)
            candidates = forms(operator, inputs)
            got, want = (candidates[name]()[0].float() for name in ("triton", "parallel"))  # type: ignore[index]
            found = milliseconds(candidates)
            print(
                f"{operator} {shape}: "
                + ", ".join(f"{name} {ms:.3f} ms" for name, ms in found.items())
                + f"; difference {float((got - want).norm() / want.norm()):.1e}",
                flush=True,
            )
            token = {name: x[:, 0] for name, x in inputs.items()}
            state = torch.zeros(batch, heads, KEY, VALUE, device="cuda")
            run = record(partial(getattr(kernels, f"{operator}_step"), **token, state=state))
            ms = milliseconds({"step": run})["step"]
            print(f"    a decode step: {ms:.4f} ms, {2 * state.nbytes / ms / 1e6:,.0f} GB/s of the state", flush=True)


if __name__ == "__main__":
    main()
