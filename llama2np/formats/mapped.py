"""Memory-mapped files: read once from the beginning to the end, or used as weights."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np

from llama2np.files import open_regular


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


def is_mapped(array: np.ndarray) -> bool:
    """Whether an array is a view of a mapped file, which takes no memory until it is read."""
    return _map_of(array) is not None


def forget(array: np.ndarray) -> None:
    """Give back the memory of a view of a mapped file: what is read again, is read from the file.

    The array must be as it is in the file, in one piece. Nothing happens to one that is not mapped.
    """
    mapped = _map_of(array)
    if mapped is None or not hasattr(mmap, "MADV_DONTNEED"):  # as on Windows
        return
    first = array.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
    start = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE
    if (length := first + array.nbytes - start) > 0:
        with suppress(OSError):
            mapped.madvise(mmap.MADV_DONTNEED, start, length)


def _map_of(array: np.ndarray) -> mmap.mmap | None:
    """The mapped file that an array is a view of."""
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return base
