"""Batches of sequences of different lengths, and which predictions of them count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences with padding at their right ends.

    tokens: (B, T) int64; lengths: (B,) int64, the tokens of each sequence; types: (B, T), the token
    types of an encoder. rows: (N,) indexes of tokens of the flattened batch (B * T); the loss is
    about the logits after these tokens, targets (N,) has the right answers. weights: (N,) float32,
    how much the loss of each target counts; None: all count 1.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray
    targets: np.ndarray
    types: np.ndarray | None = None
    weights: np.ndarray | None = None

    @classmethod
    def next_tokens(cls, tokens: np.ndarray, lengths: np.ndarray | None = None) -> Batch:
        """A batch (B, T) in which each token but the first is to be predicted.

        The last token of the longest sequence is a target only, so that the network reads T - 1.
        lengths: by default T for all. Raises ValueError for arguments that do not fit together, and
        for a batch with nothing to predict.
        """
        tokens, lengths = _checked(tokens, lengths)
        targets = tokens[:, 1:]
        present = np.arange(targets.shape[1]) < lengths[:, None] - 1
        if not present.any():
            raise ValueError("a batch needs a sequence of two tokens or more: one to predict")
        read = np.ascontiguousarray(tokens[:, :-1])
        lengths = np.minimum(lengths, read.shape[1])
        return cls(read, lengths, np.flatnonzero(present), targets[present])

    @classmethod
    def labels(
        cls, tokens: np.ndarray, lengths: np.ndarray | None, labels: np.ndarray | Sequence[int]
    ) -> Batch:
        """A batch (B, T) of which each sequence has a label (B,), predicted after its last token.

        Raises ValueError for arguments that do not fit together.
        """
        tokens, lengths = _checked(tokens, lengths)
        labels = np.asarray(labels, np.int64)
        if labels.shape != (len(tokens),):
            raise ValueError(f"labels have shape {labels.shape}, expected {(len(tokens),)}")
        rows = np.arange(len(tokens)) * tokens.shape[1] + lengths - 1
        return cls(tokens, lengths, rows, labels)

    @property
    def weight(self) -> float:
        """What the total loss is divided by: the number of targets, or the sum of their weights."""
        return float(len(self.rows) if self.weights is None else self.weights.sum(dtype=np.float64))

    @property
    def shape(self) -> tuple[int, int]:
        """The number of sequences, and of the tokens of the longest: (B, T)."""
        return self.tokens.shape[0], self.tokens.shape[1]

    def check(self, vocab_size: int, seq_len: int, n_outputs: int) -> None:
        """Raise ValueError for tokens, lengths or targets that a network does not have."""
        if self.shape[1] > seq_len:
            raise ValueError(f"sequences of {self.shape[1]:,} tokens, the context has {seq_len:,}")
        for what, values, count in (
            ("token", self.tokens, vocab_size),
            ("target", self.targets, n_outputs),
        ):
            if values.size and not (0 <= values.min() and values.max() < count):
                worst = values.min() if values.min() < 0 else values.max()
                raise ValueError(f"{what} {worst} is not in 0 to {count - 1:,}")


def padded(sequences: Sequence[Sequence[int] | np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Sequences as an array (B, longest) int64, with 0 after their ends, and their lengths (B,)."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    tokens = np.zeros((len(lengths), int(lengths.max(initial=1))), np.int64)
    for row, sequence in zip(tokens, sequences, strict=True):
        row[: len(sequence)] = sequence
    return tokens, lengths


def _checked(tokens: np.ndarray, lengths: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or not tokens.size or tokens.dtype.kind not in "iu":
        raise ValueError(f"tokens must be integers (B, T), not {tokens.dtype} {tokens.shape}")
    count, longest = tokens.shape
    lengths = np.full(count, longest) if lengths is None else np.asarray(lengths)
    if lengths.shape != (count,) or lengths.dtype.kind not in "iu":
        raise ValueError(f"lengths must be {count} integers, not {lengths.dtype} {lengths.shape}")
    if not (lengths.min() >= 1 and lengths.max() <= longest):
        raise ValueError(f"lengths must be 1 to {longest}, not {lengths.min()} to {lengths.max()}")
    return tokens.astype(np.int64), lengths.astype(np.int64)
