"""Labelled texts from files, and batches of them."""

from __future__ import annotations

import csv
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llama2np.learning.batch import Batch, padded

StrPath = str | os.PathLike[str]
_BETWEEN = "|||"
_TEXTS, _LABELS = ("text", "sentence"), ("label", "labels")


@dataclass(frozen=True, slots=True)
class Examples:
    """Texts, the number of the label of each, and the names of all labels."""

    texts: list[str]
    labels: np.ndarray  # (n,) int64
    names: tuple[str, ...]

    @classmethod
    def read(cls, path: StrPath, names: Sequence[str] = ()) -> Examples:
        """Read a file of `label ||| sentence` lines, or a .csv or .jsonl with text and label.

        names: the labels, of which a file may have the names or the numbers; by default those that
        occur in the file, sorted. Raises ValueError that names the line, and OSError.
        """
        rows = list(_rows(Path(path)))
        if not rows:
            raise ValueError(f"{path}: no examples, expected lines of `label {_BETWEEN} sentence`")
        found = [label for _, label, _ in rows]
        known = tuple(names) or tuple(sorted(set(found), key=_order))
        numbers = {str(i): i for i in range(len(known))} | {n: i for i, n in enumerate(known)}
        for line, label, _ in rows:
            if label not in numbers:
                raise ValueError(
                    f"{path}: line {line}: label {label!r}, expected one of {', '.join(known)}"
                )
        labels = np.array([numbers[label] for label in found], np.int64)
        return cls([text for *_, text in rows], labels, known)


def _order(label: str) -> tuple[bool, int, str]:
    """Numbers by size, then names."""
    number = label.isdecimal()
    return not number, int(label) if number else 0, label


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield (line, label, text)."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, found another byte at {error.start}") from None
    if path.suffix == ".csv":
        yield from _from_csv(path, content)
        return
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        if path.suffix == ".jsonl":
            yield number, *_from_json(path, number, line)
            continue
        label, between, text = line.partition(_BETWEEN)
        if not between or not text.strip():
            raise ValueError(f"{path}: line {number}: expected `label {_BETWEEN} sentence`")
        yield number, label.strip(), text.strip()


def _from_csv(path: Path, content: str) -> Iterator[tuple[int, str, str]]:
    reader = csv.DictReader(content.splitlines(keepends=True))
    fields = reader.fieldnames or ()
    text, label = (next((n for n in names if n in fields), None) for names in (_TEXTS, _LABELS))
    if text is None or label is None:
        raise ValueError(f"{path}: columns {', '.join(fields)}, expected text and label")
    for row in reader:
        if not row[text] or not row[label]:
            raise ValueError(f"{path}: line {reader.line_num}: expected a text and a label")
        yield reader.line_num, row[label].strip(), row[text].strip()


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
    """

    def __init__(self, tokens: list[np.ndarray], rows: int, seed: int, labels: np.ndarray):
        if not all(map(len, tokens)):
            raise ValueError("a text has no tokens")
        self._tokens, self._rows, self._seed = tokens, min(rows, len(tokens)), seed
        check = zlib.crc32(np.concatenate([*tokens, labels]).astype("<i4").tobytes())
        self.name = f"{len(tokens)} texts {check:08x}, {rows} rows, seed {seed}"
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])

    @property
    def per_epoch(self) -> int:
        """The number of batches in which each text occurs once."""
        return -(-len(self._tokens) // self._rows)

    def batch(self, number: int) -> Batch:
        """The batch of that number."""
        epoch, place = divmod(number, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = epoch, self._order(epoch)
        return self._of(self._epoch[1][place])

    def all(self) -> Iterator[Batch]:
        """All texts, in their order."""
        for some in np.array_split(np.arange(len(self._tokens)), self.per_epoch):
            yield self._of(some)

    def _order(self, epoch: int) -> list[np.ndarray]:
        """Shuffle; sort by length within groups of 16 batches; shuffle the batches."""
        random = np.random.default_rng([self._seed, epoch])
        order = random.permutation(len(self._tokens))
        lengths = np.array(list(map(len, self._tokens)))
        group, parts = 16 * self._rows, list[np.ndarray]()
        for start in range(0, len(order), group):
            some = order[start : start + group]
            some = some[np.argsort(lengths[some], kind="stable")]
            parts += [some[i : i + self._rows] for i in range(0, len(some), self._rows)]
        return [parts[i] for i in random.permutation(len(parts))]

    def _of(self, which: np.ndarray) -> Batch:
        raise NotImplementedError


class Labelled(_Epochs):
    """Batches of `rows` labelled texts, of which at most `longest` tokens are read: see `Data`."""

    def __init__(
        self,
        examples: Examples,
        encode: Callable[[str], list[int]],
        rows: int,
        longest: int,
        seed: int = 0,
    ):
        tokens = [np.array(encode(text)[:longest], np.int32) for text in examples.texts]
        super().__init__(tokens, rows, seed, examples.labels)
        self._labels = examples.labels

    def _of(self, which: np.ndarray) -> Batch:
        tokens, lengths = padded([self._tokens[i] for i in which])
        return Batch.labels(tokens, lengths, self._labels[which])


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
        tokens = [np.array(encode(text)[:longest], np.int32) for text in texts]
        if not texts or max(map(len, tokens)) < 2:
            raise ValueError("there is nothing to predict: expected a text of two tokens or more")
        super().__init__(tokens, rows, seed, np.zeros(0, np.int64))

    def _of(self, which: np.ndarray) -> Batch:
        return Batch.next_tokens(*padded([self._tokens[i] for i in which]))
