"""Memory that training frees is used again instead of going back to the system, which zeroes it page by page."""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
MAPPED_FROM = 1 << 30  # bytes: what is larger still comes from the system and goes back to it
SET_BY_USER = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep what is freed, for this process and from now on; False where there is no such malloc
    or the user has set its thresholds. By itself it maps every tensor over 32 MiB anew and gives back the end of the
    heap, and each of their pages is zeroed again: 7 % of the CPU time of Model 2 at width 512, for 100 MiB on top
    of 2,400, and nothing at width 64 (`benchmarks/malloc.py`, docs/log.md)."""
    if any(name in os.environ for name in SET_BY_USER):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, MAPPED_FROM) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
