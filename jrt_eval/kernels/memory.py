"""The C library's memory allocator, set up for tensors on a CPU."""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import cache

from torch import Tensor

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
_LARGEST_BLOCK = 1 << 25  # what glibc accepts at most for M_MMAP_THRESHOLD
_KEPT = 1 << 29
_MADV_PAGEOUT = 21  # Linux 5.4


@cache
def keep_freed_memory() -> bool:
    """Let this process keep up to 512 MiB of freed memory, for the tensors that follow; returns whether glibc agreed.

    By default glibc gives the memory of a freed tensor of more than 128 KiB back to the operating system, which clears each
    page again when the next tensor touches it: for an addition or a norm over a prompt that takes several times as long as
    the arithmetic. Larger blocks than 32 MiB are not affected. Without glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _KEPT) and mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK))


def page_out(tensor: Tensor) -> None:
    """Tell the kernel that the contents of a CPU tensor are not read again soon: a memory-mapped file's pages leave memory.

    The contents stay valid. Without Linux, or where it declines, nothing happens.
    """
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end <= start or not tensor.is_contiguous() or sys.platform != "linux":
        return
    try:
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError, TypeError):
        return
    madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_PAGEOUT)
