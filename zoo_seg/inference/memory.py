"""Large blocks of memory are kept between one layer and the next instead of being fetched from the system anew."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 1 << 30


@cache
def keep_large_blocks() -> None:
    """Let glibc reuse freed blocks of more than 32 MB, up to 1 GB of them; once a process.

    By default it maps such a block for every layer's output and the system clears its pages each time: 6 % of
    the time of PSPNet on a CPU. Another allocator, or one that the user has tuned, is left alone.
    """
    tuned = any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ)
    if tuned or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
