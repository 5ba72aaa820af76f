"""Measures of predicted labels: accuracy and F1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Report:
    """confusion[i, j]: how often label i was predicted as j; accuracy; f1: (n_labels,), 0 for a
    label that neither occurs nor is predicted; macro_f1: their mean over the labels that occur.
    """

    names: tuple[str, ...]
    confusion: np.ndarray
    accuracy: float
    f1: np.ndarray
    macro_f1: float

    @classmethod
    def of(cls, predicted: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Report:
        """From two arrays of label numbers (n,). Raises ValueError for no labels."""
        if not len(labels):
            raise ValueError("there are no labels to compare with")
        confusion = np.zeros((len(names), len(names)), np.int64)
        np.add.at(confusion, (labels, predicted), 1)
        right, occurs = np.diag(confusion), confusion.sum(1)
        both = occurs + confusion.sum(0)
        f1 = np.divide(2 * right, both, out=np.zeros(len(names)), where=both > 0)
        accuracy = float(right.sum() / len(labels))
        return cls(tuple(names), confusion, accuracy, f1, float(f1[occurs > 0].mean()))

    def lines(self) -> Iterator[str]:
        """Yield the lines of a table: rows are the labels, columns the predictions."""
        yield f"accuracy {self.accuracy:.4f}, macro F1 {self.macro_f1:.4f}"
        width = max(6, *map(len, self.names))
        yield " ".join([" " * width, *(name.rjust(width) for name in self.names), "    F1"])
        for name, row, f1 in zip(self.names, self.confusion, self.f1, strict=True):
            cells = (str(count).rjust(width) for count in row)
            yield " ".join([name.ljust(width), *cells, f"{f1:6.3f}"])
