"""Memory-mapped files: read once from the beginning to the end, or used as weights."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np

from llama2np.files import open_regular

_HUGE = 2**21  # bytes of a huge page of x86-64, and of most ARM systems


def map_file(path: str | os.PathLike[str]) -> mmap.mmap | bytes:
    """The bytes of a file, mapped. Raises OSError."""
    with open_regular(path) as file:
        if not os.fstat(file.fileno()).st_size:
            return b""  # an empty file cannot be mapped
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_SEQUENTIAL"):  # not on Windows
        with suppress(OSError):
            mapped.madvise(mmap.MADV_SEQUENTIAL)  # reading takes a third of the time on Linux
    return mapped


def map_weights(file: BinaryIO) -> np.ndarray:
    """Map a file as a uint8 array. If the file shrinks later, access to it causes SIGBUS.

    The map is copy-on-write: nothing is written to the file, but the array is writeable, so that
    numba sees the same array type everywhere. If the system cannot reserve so much memory, the map
    is read-only, and the kernels are compiled a second time for it.
    """
    if not os.fstat(file.fileno()).st_size:
        return np.empty(0, np.uint8)  # an empty file cannot be mapped
    try:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, MemoryError):
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux; 5 to 10 % faster on large models
        with suppress(OSError):
            mapped.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapped, np.uint8)


def for_running(array: np.ndarray) -> None:
    """Prepare a view of a mapped file for being read often, and not from beginning to end."""
    mapped = _map_of(array)
    if mapped is not None and hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        with suppress(OSError):
            mapped.madvise(mmap.MADV_NORMAL)
            mapped.madvise(mmap.MADV_HUGEPAGE)


def read_ahead(arrays: Sequence[np.ndarray]) -> None:
    """Let Linux begin to read views of mapped files from the disk, before they are used.

    From a cold file of 1.2 GB the first token then came after 0.62 s instead of 0.79.
    Nothing happens if they need more than half of the memory that is available, because other files
    would have to leave the page cache for them.
    """
    if 2 * sum(array.nbytes for array in arrays) <= _available():
        for array in arrays:
            _advise(array, "MADV_WILLNEED", around=True)


def _available() -> int:
    """The bytes of memory that Linux can give without swapping; 0 if that is unknown."""
    with suppress(OSError, ValueError, StopIteration):
        with open("/proc/meminfo", encoding="ascii") as file:
            line = next(line for line in file if line.startswith("MemAvailable:"))
        return 1024 * int(line.split()[1])
    return 0


def is_mapped(array: np.ndarray) -> bool:
    """Whether an array is a view of a mapped file, which takes no memory until it is read."""
    return _map_of(array) is not None


def in_small_pages(array: np.ndarray) -> None:
    """Let a view of a mapped file, of which only a part is read, take memory in small pages.

    A huge page has 2 MB: reading one value would take so much.
    """
    _advise(array, "MADV_NOHUGEPAGE", around=True)


def in_huge_pages(array: np.ndarray) -> None:
    """Let a view of a mapped file take memory in huge pages, except at its two ends."""
    _advise(array, "MADV_HUGEPAGE", _HUGE)


def forget(array: np.ndarray) -> None:
    """Give back the memory of a view of a mapped file: what is read again, is read from the file.

    The array must be as it is in the file.
    """
    _advise(array, "MADV_DONTNEED")


def _advise(
    array: np.ndarray, advice: str, size: int = mmap.PAGESIZE, around: bool = False
) -> None:
    """Tell the system about the pages of this size that are wholly inside an array, or around it.

    The array is in one piece. Nothing happens if it is not mapped, or if the system has no such
    advice.
    """
    mapped = _map_of(array)
    if mapped is None or not hasattr(mmap, advice):
        return
    address = np.frombuffer(mapped, np.uint8).ctypes.data
    first = array.ctypes.data
    start, end = -(-first // size) * size, (first + array.nbytes) // size * size
    if around:
        start, end = first // size * size, min(end + size, address + len(mapped))
    if start < end:
        with suppress(OSError):
            mapped.madvise(getattr(mmap, advice), start - address, end - start)


def _map_of(array: np.ndarray) -> mmap.mmap | None:
    """The mapped file that an array is a view of."""
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return base
