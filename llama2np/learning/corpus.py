"""Text files as one long file of tokens, and windows of it as batches."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from llama2np.atomic import replacing
from llama2np.learning.batch import Batch
from llama2np.learning.lines import StrPath, pieces

Encode = Callable[[str], list[int]]

END = "<|endoftext|>"  # a line of it ends a text, as in the files of TinyStories
_LONGEST = 2**22  # characters: a longer text is read in parts, most of which end with a line


def texts(paths: Iterable[StrPath]) -> Iterator[str]:
    """The texts of UTF-8 files, those of a file divided by lines of <|endoftext|>.

    Raises ValueError for a file that is not UTF-8, and OSError.
    """
    for path in paths:
        parts: list[str] = []
        size, before = 0, 0
        for number, part in pieces(path):
            ends = part.strip() == END and number != before  # not the end of a long line
            parts += [] if ends else [part]
            size, before = size + len(part), number
            if ends or size > _LONGEST:
                yield from _text(parts)
                parts, size = [], 0
        yield from _text(parts)


def _text(parts: list[str]) -> Iterator[str]:
    text = "".join(parts).strip()
    if text:
        yield text


def write_tokens(
    path: StrPath, paths: Iterable[StrPath], encode: Encode, progress: Callable[[int], object] = int
) -> int:
    """Write the tokens of files, int32 one after the other; return their number.

    encode: from a text to its tokens, with BOS; progress: called with the characters of each text.
    Only one text is in memory. Raises ValueError for files without a text, and OSError.
    """
    count, paths = 0, list(paths)
    with replacing(path) as file:
        for text in texts(paths):
            tokens = np.array(encode(text), "<i4")
            file.write(tokens.tobytes())
            count += len(tokens)
            progress(len(text))
        if count < 2:
            raise ValueError(f"{', '.join(map(str, paths))}: {count} tokens, expected 2 or more")
    return count


class Windows:
    """Random windows of a file of tokens, as batches: see `Data`.

    Batch i is a function of (seed, i) and the file, which stays on the disk.
    """

    def __init__(self, path: StrPath, length: int, rows: int, seed: int = 0):
        self._tokens = np.memmap(path, "<i4", "r")
        self._length = min(length, len(self._tokens) - 1)
        self._rows, self._seed = rows, seed
        check = zlib.crc32(self._tokens.view(np.uint8))
        self.name = f"{len(self._tokens)} tokens {check:08x}, {rows} x {length}, seed {seed}"

    def __len__(self) -> int:
        return len(self._tokens)

    def batch(self, number: int) -> Batch:
        """The batch of that number: `rows` windows of `length` tokens and the next one."""
        random = np.random.default_rng([self._seed, number])
        starts = random.integers(0, len(self._tokens) - self._length, self._rows)
        return self._at(starts)

    def all(self, most: int = 2**16) -> Iterator[Batch]:
        """The file from its beginning in windows one after the other, at most `most` tokens."""
        last = min(len(self._tokens) - 1, most) - self._length + 1
        starts = np.arange(0, max(last, 1), self._length)
        for first in range(0, len(starts), self._rows):
            yield self._at(starts[first : first + self._rows])

    def _at(self, starts: np.ndarray) -> Batch:
        rows = self._tokens[starts[:, None] + np.arange(self._length + 1)]
        return Batch.next_tokens(rows.astype(np.int64))


def size_of(paths: Iterable[StrPath]) -> int:
    """The bytes of files in total. Raises OSError."""
    return sum(Path(path).stat().st_size for path in paths)
