"""Cross entropy: the logits of some rows, their loss, and its derivative, a part at a time.

The logits are the largest array of a step (rows * vocab_size). They are never all in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llama2np.learning.passes import Pass

_PART = 2**22  # logits at a time: 16 MB


@dataclass(slots=True)
class Loss:
    """The losses of a batch.

    total: the sum of -log p(target) in nats over all targets, times their weights; predicted:
    (count,) int64, the output with the largest logit for each; right: how many of these are the
    target. by_hidden: the derivative of total * factor by what the head reads.
    """

    total: float
    predicted: np.ndarray
    right: int
    by_hidden: np.ndarray | None

    @property
    def count(self) -> int:
        """The number of targets."""
        return len(self.predicted)


def cross_entropy(run: Pass, hidden: np.ndarray, factor: float | None = None) -> Loss:
    """The loss of the batch's targets, from the head's input (B * T, dim).

    With z = W x + b, p = softmax(z) and the target t: loss -log p_t, dz = p - (1 at t). A softcap
    c tanh(z / c) has the slope 1 - tanh^2. factor: that of the loss whose derivatives are computed,
    such as 1 / the number of targets; None: compute no derivatives.
    """
    if not run.program.has_logits:
        raise ValueError("this network has no logits, so there is nothing to predict")
    head, batch = _Head(run, factor), run.batch
    by_hidden = None if factor is None else np.zeros_like(hidden)
    loss = Loss(0.0, np.empty(len(batch.rows), np.int64), 0, by_hidden)
    for start in range(0, loss.count, head.size):
        part = slice(start, start + head.size)
        rows, targets = batch.rows[part], batch.targets[part]
        z, slope = head.logits(hidden[rows])
        loss.predicted[part] = z.argmax(-1)
        nats = _to_shares(z, targets)
        weights = None if batch.weights is None else batch.weights[part]
        loss.total += float(nats.sum() if weights is None else nats @ weights)
        if by_hidden is not None:
            z[np.arange(len(rows)), targets] -= 1
            if weights is not None:
                z *= weights[:, None]
            by_hidden[rows] = head.backward(hidden[rows], z, slope)
    loss.right = int((loss.predicted == batch.targets).sum())
    head.give()
    return loss


class _Head:
    """The last step of a program: its weights, and their gradients so far."""

    def __init__(self, run: Pass, factor: float | None):
        step = run.program.steps[-1]
        (self.name,), (self.bias,) = step.weights["w"], step.weights.get("bias", ("",))
        self.w, self.cap = run.weight(self.name), step.numbers["softcap"]
        self.b = run.weight(self.bias) if self.bias else None
        self.run, self.factor, self.size = run, factor, max(_PART // len(self.w), 1)
        learns = factor is not None
        self.by_w = np.zeros_like(self.w) if learns and run.trains(self.name) else None
        self.by_b = np.zeros_like(self.b) if learns and run.trains(self.bias) else None

    def logits(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The logits of rows x (n, dim), and the slope of the softcap."""
        z = x @ self.w.T
        if self.b is not None:
            z += self.b
        if not self.cap:
            return z, None
        tanh = np.tanh(z / z.dtype.type(self.cap))
        return tanh * z.dtype.type(self.cap), 1 - tanh * tanh

    def backward(self, x: np.ndarray, by_z: np.ndarray, slope: np.ndarray | None) -> np.ndarray:
        """From the derivative by the logits, which is changed: that by x, in (n, dim)."""
        by_z *= by_z.dtype.type(self.factor or 0)
        if slope is not None:
            by_z *= slope
        if self.by_w is not None:
            self.by_w += by_z.T @ x
        if self.by_b is not None:
            self.by_b += by_z.sum(0)
        return np.asarray(by_z @ self.w)

    def give(self) -> None:
        """Give the gradients to the pass."""
        for name, gradient in ((self.name, self.by_w), (self.bias, self.by_b)):
            if gradient is not None:
                self.run.give(name, gradient)


def _to_shares(z: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Make logits (n, count) probabilities, in place; return the losses (n,) float64."""
    z -= z.max(-1, keepdims=True)
    chosen = z[np.arange(len(z)), targets].astype(np.float64)
    np.exp(z, out=z)
    sums = z.sum(-1, keepdims=True)
    z /= sums
    nats: np.ndarray = np.log(sums[:, 0].astype(np.float64)) - chosen
    return nats
