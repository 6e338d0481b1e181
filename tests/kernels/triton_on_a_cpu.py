"""The backward kernels thread by thread on the processor, against autograd through the reference in float64. Run by test_kernels_backward.

Triton's interpreter is chosen before triton is imported, so this is a process of its own. Prints one line per case: name, errors.
"""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import triton.language as tl
from backward_cases import CASES, Case, errors
from triton.runtime import interpreter

from jrt_eval.kernels.taylor_linear_attention import triton as backward_triton

plain = interpreter.InterpreterBuilder.create_dot


def create_dot(self, a, b, *rest):  # type: ignore[no-untyped-def]
    """The interpreter multiplies the bits of bfloat16 operands."""

    def widened(x):  # type: ignore[no-untyped-def]
        if x.dtype.scalar != tl.bfloat16:
            return x
        return interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    return plain(self, widened(a), widened(b), *rest)


def main() -> None:
    interpreter.InterpreterBuilder.create_dot = create_dot
    for name, case in CASES.items():
        if len(sys.argv) > 1 and name not in sys.argv[1:]:
            continue
        backward_triton.SHORTEST = case.shortest
        print(name, *(f"{e:.2e}" for e in errors(backward_triton, Case(**vars(case)))), flush=True)


if __name__ == "__main__":
    main()
