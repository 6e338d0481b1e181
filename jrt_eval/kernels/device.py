"""What the CUDA kernels ask about the GPU: the current stream, and properties of the device."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from jrt_eval.kernels import compiled

_c: Any = compiled.cuda_module()


@cache
def facts(index: int) -> tuple[int, int, bool]:
    """Multiprocessors of a device, how many bytes of shared memory one block may have, and whether the Hopper kernel runs there."""
    properties: Any = torch.cuda.get_device_properties(index)
    hopper = _c.HOPPER and (properties.major, properties.minor) == (9, 0)
    return properties.multi_processor_count, properties.shared_memory_per_block_optin, hopper


def stream(x: Tensor) -> int:
    return torch.cuda.current_stream(x.device).cuda_stream
