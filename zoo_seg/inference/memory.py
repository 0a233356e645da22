"""Large blocks of memory are kept between one layer and the next instead of being fetched from the system anew."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from functools import cache
from pathlib import Path

import numpy as np
from torch import Tensor

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 1 << 30


@cache
def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc with its own allocator, untuned by the user."""
    tuned = any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ)
    if tuned or not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") else None


@cache
def keep_large_blocks() -> None:
    """Let glibc reuse freed blocks of more than 32 MB, up to 1 GB of them; once a process.

    By default it maps such a block for every layer's output and the system clears its pages each time: 5 % of
    the time of PSPNet on a CPU.
    """
    if library := _glibc():
        library.mallopt(_M_MMAP_THRESHOLD, _KEPT)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT)


def give_back() -> None:
    """Return free memory to the system: blocks of many different sizes leave gaps that nothing fits into."""
    if library := _glibc():
        library.malloc_trim(0)


_FILE, _IN_USE = 61, 62
"""Bits of an entry of /proc/self/pagemap: the page is a file's; from here on: it is in memory or swapped out."""


def drop_file_pages(tensor: Tensor) -> bool:
    """Take a tensor's memory-mapped pages out of this process' memory; they are read again when touched.

    Only where all of them still are the file's: a page that was written to is nowhere but in memory.

    Returns:
        Whether they were.
    """
    if not sys.platform.startswith("linux") or tensor.device.type != "cpu" or not tensor.numel():
        return False
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    first = tensor.data_ptr() // mmap.PAGESIZE
    count = (tensor.data_ptr() + span * tensor.element_size() - 1) // mmap.PAGESIZE + 1 - first
    try:
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pages:
            pages.seek(8 * first)
            flags = np.frombuffer(pages.read(8 * count), np.uint64)
    except OSError:
        return False
    if not ((flags >> _FILE & 1 == 1) | (flags >> _IN_USE == 0)).all():
        return False
    start, length = ctypes.c_void_p(first * mmap.PAGESIZE), ctypes.c_size_t(count * mmap.PAGESIZE)
    ctypes.CDLL(None).madvise(start, length, mmap.MADV_DONTNEED)
    return True
