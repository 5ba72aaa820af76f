"""The state of a mapped file, on which the speed of reading it depends.

Linux keeps a file in its page cache, in pieces of 4 KiB to 2 MiB. A file that was just written has
pieces as long as each write was; one that was read from the disk has long ones. Processes that map
the file share the pieces, and read those of 2 MiB up to 1.3 times as fast.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llama2np import kernels
from llama2np.formats.mapped import map_weights


def drop_from_cache(path: Path) -> None:
    """Let the next reader read the file from the disk. What is mapped stays: close all maps before.

    Nothing happens where the system has no such call.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def share_in_huge_pages(path: Path, process: str = "self") -> str:
    """How much of what a process has read of a mapped file is in pages of 2 MiB, in percent."""
    maps = Path(f"/proc/{process}/smaps")
    if not maps.exists():
        return "unknown"
    sizes, ours = {"Rss:": 0, "FilePmdMapped:": 0}, False
    for line in maps.read_text().splitlines():
        word, *rest = line.split()
        if not word.endswith(":"):  # the head of the next map
            ours = line.endswith(str(path.resolve()))
        elif ours and word in sizes:
            sizes[word] += int(rest[0])
    return f"{sizes['FilePmdMapped:'] / max(sizes['Rss:'], 1):.0%}"


def file_speed(path: Path) -> Callable[[], float]:
    """A function that returns the bytes per second of a plain sum over a mapped file."""
    with path.open("rb") as file:
        mapped = map_weights(file)
    rows = mapped[: mapped.size // 4096 * 4096].view(np.float32).reshape(1024, -1)
    sums = np.zeros(len(rows), np.float32)

    def speed() -> float:
        start = time.perf_counter()
        kernels.row_sums(rows, sums)
        return rows.nbytes / (time.perf_counter() - start)

    return speed
