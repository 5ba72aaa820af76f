"""The files of prompts, cut into chunks. They are read line by line, and never held as a whole."""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np

from llama2np.files import open_regular
from llama2np.jsonl import all_lines

_MOST_BYTES = 2**22  # of a chunk with more than one line: it is one message


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some lines of a file, which are answered together: `prompts` of `lines` are not empty."""

    file: int
    name: str
    start: int  # byte
    first: int  # number of its first line, from 1
    lines: int
    prompts: int


@dataclass(slots=True)
class PromptFile:
    """A file of prompts: what identifies its content, and its chunks."""

    path: Path
    size: int = 0  # bytes
    blake2b: str = ""
    chunks: list[Chunk] = field(default_factory=list)

    def lines(self, chunk: Chunk) -> list[tuple[int, bytes]]:
        """The lines of a chunk that are not empty, with their numbers. Raises OSError."""
        with open_regular(self.path) as file:
            file.seek(chunk.start)
            numbered = zip(range(chunk.first, chunk.first + chunk.lines), all_lines(file))  # noqa: B905
            return [(number, line) for number, line in numbered if line.strip()]


class Ids:
    """Finds ids that several prompts have. 16 bytes of memory for each id."""

    def __init__(self) -> None:
        self._hashes, self._places = array("Q"), array("Q")

    def add(self, file: int, line: int, data: bytes) -> None:
        """Note the id of a line, if it has one."""
        if b'"id"' not in data:
            return
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return  # a bad line, which its worker reports
        if isinstance(value, dict) and value.get("id") is not None:
            text = json.dumps(value["id"], sort_keys=True).encode()
            self._hashes.append(int.from_bytes(blake2b(text, digest_size=8).digest(), "big"))
            self._places.append(file << 40 | line)

    def repeated(self) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """((file, line), the first (file, line) with the same id), in the order of the files."""
        if not self._hashes:
            return []
        hashes, places = (np.asarray(x, np.uint64) for x in (self._hashes, self._places))
        order = np.argsort(hashes, kind="stable")
        same = hashes[order][1:] == hashes[order][:-1]
        firsts = np.maximum.accumulate(np.where(np.r_[True, ~same], np.arange(len(order)), 0))
        pairs = [
            (int(places[order[i + 1]]), int(places[order[firsts[i + 1]]]))
            for i in np.flatnonzero(same)
        ]
        return [(divmod(one, 1 << 40), divmod(first, 1 << 40)) for one, first in sorted(pairs)]


def scan(paths: Sequence[Path], size: int, ids: Ids | None = None) -> list[PromptFile]:
    """Read files of prompts once, and cut them into chunks of at most `size` lines.

    ids: collects the ids of the prompts. Raises OSError, and ValueError for a file that is named
    twice.
    """
    real = [os.path.realpath(path) for path in paths]
    for i, path in enumerate(paths):
        if real[i] in real[:i]:
            raise ValueError(f"{path}: is named twice")
    return [_scanned(i, path, size, ids) for i, path in enumerate(paths)]


def _scanned(number: int, path: Path, size: int, ids: Ids | None) -> PromptFile:
    found, digest = PromptFile(path), blake2b(digest_size=16)
    # The names of chunks have the order of the prompts.
    name = f"{number:04}-{re.sub(r'[^A-Za-z0-9_.-]', '_', path.stem)[:40]}"
    start = first = lines = prompts = end = 0

    def seen(data: bytes) -> None:
        nonlocal end
        digest.update(data)
        end += len(data)

    def cut() -> None:
        if prompts:
            parts = number, f"{name}-{first + 1:010}", start, first + 1, lines, prompts
            found.chunks.append(Chunk(*parts))

    with open_regular(path) as file:
        before = 0
        for line in all_lines(file, seen):
            if lines == size or (lines and end - start > _MOST_BYTES):
                cut()
                start, first, lines, prompts = before, first + lines, 0, 0
            lines, before = lines + 1, end
            if line.strip():
                prompts += 1
                if ids is not None:
                    ids.add(number, first + lines, line)
        cut()
    found.size, found.blake2b = end, digest.hexdigest()
    return found
