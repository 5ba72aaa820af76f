"""Q8_0: groups of values as int8 and one float32 scale, the arithmetic of llama2.c's exporter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llama2np.arguments import whole
from llama2np.formats.dtypes import quiet
from llama2np.model.config import Config

_GROUP_SIZE = 64  # llama2.c's, used if the network allows it


@dataclass(slots=True)
class Error:
    """The absolute error of dequantized values."""

    largest: float = 0.0
    total: float = 0.0
    count: int = 0

    @property
    def mean(self) -> float:
        """The mean absolute error."""
        return self.total / max(self.count, 1)

    def add(self, other: Error) -> None:
        """Include the error of more values."""
        self.largest = max(self.largest, other.largest)
        self.total += other.total
        self.count += other.count


def group_size_for(config: Config) -> int:
    """The largest of 64, 32, 16 ... that divides dim and hidden_dim.

    llama2.c considers dim alone, and its runq then computes wrong values (llama2.c #532).
    """
    group = _GROUP_SIZE
    while config.dim % group or config.hidden_dim % group:
        group //= 2
    return group


@quiet
def quantize(w: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray, Error]:
    """Return int8 values (d, n), float32 scales (d, n / group), and the quantization error.

    w: (d, n) float32, contiguous. scale = max|w| / 127; q = w / scale, rounded half to even; a
    group of zeros has scale 0. Raises ValueError for nan and inf.
    """
    groups = w.reshape(-1, whole("group", group, 1))
    scales = np.abs(groups).max(axis=1) / np.float32(127)
    if not np.isfinite(scales).all():
        raise ValueError("holds nan or inf, which int8 cannot represent")
    divisors = np.where(scales == 0, np.float32(1), scales)[:, None]
    quotients = groups / divisors
    np.rint(quotients, out=quotients)
    if scales.min(initial=1) < np.finfo(np.float32).tiny:  # too coarse: values could exceed 127
        np.clip(quotients, -127, 127, out=quotients)
    q = quotients.astype(np.int8)
    error = difference(groups, q, scales, quotients)
    return q.reshape(w.shape), scales.reshape(len(w), -1), error


@quiet
def difference(
    groups: np.ndarray, q: np.ndarray, scales: np.ndarray, scratch: np.ndarray | None = None
) -> Error:
    """The error of q (m, group) int8 × scales (m,) compared with groups (m, group) float32."""
    back = np.multiply(q, scales[:, None], out=scratch, dtype=np.float32)
    back -= groups
    np.abs(back, out=back)
    return Error(float(back.max(initial=0)), float(back.sum(dtype=np.float32)), back.size)
