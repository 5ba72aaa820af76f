"""Keep memory that was freed, for arrays that are made soon after."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_... of glibc's malloc.h
_LARGEST = 2**25  # bytes: the largest threshold that glibc takes


def keep_freed_memory(size: int = 2**30) -> bool:
    """Let glibc keep up to `size` freed bytes; return whether it does.

    By default it returns the memory of a large array to the system when the array is freed. The
    system then clears it for the next array: 4 to 12 % of the time of a training step, which makes
    and frees the same arrays again and again. This is for a whole process, so commands call it, not
    the library. Elsewhere (macOS, Windows, musl) nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, size) and mallopt(_MMAP_THRESHOLD, _LARGEST))
