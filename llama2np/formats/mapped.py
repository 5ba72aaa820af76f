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
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    if base is not None and hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        with suppress(OSError):
            base.madvise(mmap.MADV_NORMAL)
            base.madvise(mmap.MADV_HUGEPAGE)
