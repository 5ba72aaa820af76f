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
    """total: the sum of -log p(target) in nats over `count` targets; right: how many of them have
    the largest logit. by_hidden: the derivative of total * factor by what the head reads.
    """

    total: float
    count: int
    right: int
    by_hidden: np.ndarray | None


def cross_entropy(run: Pass, hidden: np.ndarray, factor: float | None = None) -> Loss:
    """The loss of the batch's targets, from the head's input (B * T, dim).

    With z = W x + b, p = softmax(z) and the target t: loss -log p_t, dz = p - (1 at t). A softcap
    c tanh(z / c) has the slope 1 - tanh^2. factor: that of the loss whose derivatives are computed,
    such as 1 / the number of targets; None: compute no derivatives.
    """
    step, batch = run.program.steps[-1], run.batch
    if step.op != "logits":
        raise ValueError("this network has no logits, so there is nothing to predict")
    (name,), (bias,) = step.weights["w"], step.weights.get("bias", ("",))
    w, b = run.weight(name), run.weight(bias) if bias else None
    by_hidden = None if factor is None else np.zeros_like(hidden)
    by_w = np.zeros_like(w) if factor is not None and run.trains(name) else None
    by_b = np.zeros_like(b) if factor is not None and b is not None and run.trains(bias) else None
    loss, cap, count = Loss(0.0, len(batch.rows), 0, by_hidden), step.numbers["softcap"], len(w)
    size = max(_PART // count, 1)
    for start in range(0, loss.count, size):
        rows, targets = batch.rows[start : start + size], batch.targets[start : start + size]
        x = hidden[rows]
        z = x @ w.T
        if b is not None:
            z += b
        tanh = np.tanh(z / z.dtype.type(cap)) if cap else None
        z = z if tanh is None else tanh * z.dtype.type(cap)
        total, right = _to_shares(z, targets)
        loss.total, loss.right = loss.total + total, loss.right + right
        if factor is None or by_hidden is None:
            continue
        z[np.arange(len(rows)), targets] -= 1
        z *= z.dtype.type(factor)
        if tanh is not None:
            z *= 1 - tanh * tanh
        by_hidden[rows] = z @ w
        if by_w is not None:
            by_w += z.T @ x
        if by_b is not None:
            by_b += z.sum(0)
    if by_w is not None:
        run.give(name, by_w)
    if by_b is not None:
        run.give(bias, by_b)
    return loss


def _to_shares(z: np.ndarray, targets: np.ndarray) -> tuple[float, int]:
    """Make logits (n, count) probabilities, in place; return the sum of losses, and the hits."""
    at = np.arange(len(z)), targets
    largest = z.max(-1, keepdims=True)
    right = int((z[at] == largest[:, 0]).sum())
    z -= largest
    chosen = z[at].astype(np.float64)
    np.exp(z, out=z)
    sums = z.sum(-1, keepdims=True)
    z /= sums
    total = float(np.log(sums[:, 0].astype(np.float64)).sum() - chosen.sum())
    return total, right
