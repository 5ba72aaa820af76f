"""Labelled texts from files, and batches of them.

A file may be larger than the memory: it is read line by line, once to count and to check, and again
for the texts. What stays in memory is about 40 bytes for each text, while a network is trained.
"""

from __future__ import annotations

import csv
import io
import json
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from llama2np.atomic import replacing
from llama2np.learning.batch import Batch, padded
from llama2np.learning.lines import StrPath, lines
from llama2np.output import printable

_BETWEEN = "|||"
_TEXTS, _LABELS = ("text", "sentence"), ("label", "labels")
_MOST_LABELS = 10_000


@dataclass(frozen=True, slots=True)
class Examples:
    """Texts, the number of the label of each, and the names of all labels.

    texts: a list, or a `FileTexts`, which reads them from their file in each loop.
    """

    texts: Iterable[str]
    labels: np.ndarray  # (n,) integers
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def read(cls, path: StrPath, names: Sequence[str] = ()) -> Examples:
        """Check a file of `label ||| sentence` lines, or a .csv or .jsonl with text and label.

        names: the labels, of which a file may have the names or the numbers; by default those that
        occur in the file, sorted. Raises ValueError that names the line, and OSError.
        """
        path, known = Path(path), tuple(names)
        texts = FileTexts(path)
        given = {str(i): i for i in range(len(known))} | {n: i for i, n in enumerate(known)}
        numbers, found = dict(given), array("i")
        for line, label, _ in _rows(path):
            if label not in numbers:
                if given:
                    expected = f"expected one of {', '.join(known)}"
                    raise ValueError(f"{path}: line {line}: label {label!r}, {expected}")
                if len(numbers) == _MOST_LABELS:
                    raise ValueError(
                        f"{path}: line {line}: more than {_MOST_LABELS:,} different labels, "
                        f"expected `label {_BETWEEN} sentence`"
                    )
                numbers[label] = len(numbers)
            found.append(numbers[label])
        if not found:
            raise ValueError(f"{path}: no examples, expected lines of `label {_BETWEEN} sentence`")
        labels = np.frombuffer(found, np.int32)
        if not given:
            known = tuple(sorted(numbers, key=_order))
            labels = np.argsort([numbers[name] for name in known]).astype(np.int32)[labels]
        return cls(texts, labels, known)


class FileTexts:
    """The texts of a file of examples, read from it again in each loop.

    Raises ValueError if the file has been changed since it was first seen, and OSError.
    """

    def __init__(self, path: StrPath):
        self._path = Path(path)
        self._seen = self._stat()

    def __iter__(self) -> Iterator[str]:
        for *_, text in _rows(self._path):
            self._check()
            yield text
        self._check()

    def _stat(self) -> tuple[int, int]:
        found = self._path.stat()
        return found.st_size, found.st_mtime_ns

    def _check(self) -> None:
        if self._stat() != self._seen:
            raise ValueError(f"{self._path}: it was changed while it was being read")


def _order(label: str) -> tuple[bool, int, str]:
    """Numbers by size, then names."""
    number = label.isdecimal()
    return not number, int(label) if number else 0, label


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield (line, label, text)."""
    if path.suffix.lower() == ".csv":
        yield from _from_csv(path)
        return
    for number, line in lines(path):
        if not line.strip():
            continue
        if path.suffix.lower() == ".jsonl":
            yield number, *_from_json(path, number, line)
            continue
        label, between, text = line.partition(_BETWEEN)
        if not between or not text.strip() or not label.strip():
            raise ValueError(f"{path}: line {number}: expected `label {_BETWEEN} sentence`")
        yield number, label.strip(), text.strip()


def _from_csv(path: Path) -> Iterator[tuple[int, str, str]]:
    reader = csv.DictReader(line for _, line in lines(path))
    try:
        fields = reader.fieldnames
        if not fields:
            return  # an empty file
        text, label = (next((n for n in names if n in fields), None) for names in (_TEXTS, _LABELS))
        if text is None or label is None:
            found = printable(", ".join(fields))
            raise ValueError(f"{path}: columns {found}, expected text and label")
        for row in reader:
            if not (row[text] or "").strip() or not (row[label] or "").strip():
                raise ValueError(f"{path}: line {reader.line_num}: expected a text and a label")
            yield reader.line_num, row[label].strip(), row[text].strip()
    except csv.Error as error:
        raise ValueError(f"{path}: after line {reader.line_num}: {error}") from None


def _from_json(path: Path, number: int, line: str) -> tuple[str, str]:
    try:
        fields = json.loads(line)
        text = next(fields[name] for name in _TEXTS if name in fields)
        label = next(fields[name] for name in _LABELS if name in fields)
    except (ValueError, TypeError, StopIteration, RecursionError):
        text = label = None
    if not isinstance(text, str) or isinstance(label, bool) or not isinstance(label, (str, int)):
        raise ValueError(f'{path}: line {number}: expected {{"text": ..., "label": ...}}')
    return str(label).strip(), text.strip()


class _Epochs:
    """Batches of sequences of tokens, in another order in each epoch: see `Data`.

    Sequences of about the same length are in one batch; each batch is a function of (seed, number).
    path: a file for the tokens, which then need no memory.
    """

    def __init__(
        self,
        sequences: Iterable[list[int]],
        labels: np.ndarray,
        rows: int,
        seed: int,
        path: StrPath | None = None,
    ):
        self._tokens, self._lengths, check = _stored(sequences, path)
        check = zlib.crc32(labels.astype("<i4").tobytes(), check)
        self._starts = np.cumsum(self._lengths, dtype=np.int64) - self._lengths
        self._labels, self._rows, self._seed = labels, min(rows, len(self)), seed
        self.name = f"{len(self)} texts {check:08x}, {self._rows} rows, seed {seed}"
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def per_epoch(self) -> int:
        """The number of batches in which each text occurs once."""
        return -(-len(self) // self._rows)

    def batch(self, number: int) -> Batch:
        """The batch of that number."""
        epoch, place = divmod(number, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = epoch, self._order(epoch)
        return self._of(self._epoch[1][place])

    def all(self) -> Iterator[Batch]:
        """All texts, in their order."""
        for some in np.array_split(np.arange(len(self)), self.per_epoch):
            yield self._of(some)

    def _order(self, epoch: int) -> list[np.ndarray]:
        """Shuffle; sort by length within groups of 16 batches; shuffle the batches."""
        random = np.random.default_rng([self._seed, epoch])
        order = random.permutation(len(self))
        group, parts = 16 * self._rows, list[np.ndarray]()
        for start in range(0, len(order), group):
            some = order[start : start + group]
            some[:] = some[np.argsort(self._lengths[some], kind="stable")]
            parts += [some[i : i + self._rows] for i in range(0, len(some), self._rows)]
        return [parts[i] for i in random.permutation(len(parts))]

    def _sequences(self, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Some of the sequences, padded."""
        ends = self._starts[which] + self._lengths[which]
        places = zip(self._starts[which], ends, strict=True)
        return padded([self._tokens[start:end] for start, end in places])

    def _of(self, which: np.ndarray) -> Batch:
        raise NotImplementedError


def _stored(
    sequences: Iterable[list[int]], path: StrPath | None
) -> tuple[np.ndarray, np.ndarray, int]:
    """The tokens of sequences one after the other, the length of each, and a checksum."""
    memory, lengths, check = io.BytesIO(), array("i"), 0

    def write(file: BinaryIO) -> None:
        nonlocal check
        for number, tokens in enumerate(sequences, 1):
            data = np.array(tokens, "<i4").tobytes()
            if not data:
                raise ValueError(f"text {number} has no tokens")
            file.write(data)
            lengths.append(len(tokens))
            check = zlib.crc32(data, check)

    if path is None:
        write(memory)
        tokens = np.frombuffer(memory.getbuffer(), "<i4")
    else:
        with replacing(path) as file:
            write(file)
        tokens = np.memmap(path, "<i4", "r")
    return tokens, np.frombuffer(lengths, np.int32), check


class Labelled(_Epochs):
    """Batches of `rows` labelled texts, of which at most `longest` tokens are read: see `Data`.

    path: a file for the tokens, for more texts than fit into memory. progress: called with 1 after
    each text.
    """

    def __init__(
        self,
        examples: Examples,
        encode: Callable[[str], list[int]],
        rows: int,
        longest: int,
        seed: int = 0,
        path: StrPath | None = None,
        progress: Callable[[int], object] = int,
    ):
        def sequences() -> Iterator[list[int]]:
            for text in examples.texts:
                yield encode(text)[:longest]
                progress(1)

        super().__init__(sequences(), examples.labels, rows, seed, path)

    def _of(self, which: np.ndarray) -> Batch:
        return Batch.labels(*self._sequences(which), self._labels[which])


class Texts(_Epochs):
    """Batches of `rows` whole texts, of which at most `longest` tokens are read: see `Data`.

    Each token but the first of a text is to be predicted. For large files there is `Windows`.
    """

    def __init__(
        self,
        texts: Sequence[str],
        encode: Callable[[str], list[int]],
        rows: int,
        longest: int,
        seed: int = 0,
    ):
        sequences = (encode(text)[:longest] for text in texts)
        super().__init__(sequences, np.zeros(0, np.int64), rows, seed)
        if self._lengths.max(initial=0) < 2:
            raise ValueError("there is nothing to predict: expected a text of two tokens or more")

    def _of(self, which: np.ndarray) -> Batch:
        return Batch.next_tokens(*self._sequences(which))
