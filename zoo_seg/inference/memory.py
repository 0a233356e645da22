"""Large blocks of memory are kept between one layer and the next instead of being fetched from the system anew."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

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
