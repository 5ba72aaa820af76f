"""A mixture of experts over a batch, and its backward."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llama2np.learning import activations
from llama2np.model.program import Step

if TYPE_CHECKING:
    from llama2np.learning.passes import Pass


def experts(step: Step, run: Pass) -> tuple[np.ndarray, ...]:
    """out = sum of share_e y_e over the chosen experts: see Block.experts."""
    x, router = run.inputs(step)
    chosen, shares = _choice(step, router)
    out, inside = np.zeros_like(x), {}
    for e in np.unique(chosen):
        w_gate, w_up, w_down = (run.weight(step.weights[w][e]) for w in _MATRICES)
        rows, slots = np.nonzero(chosen == e)
        gate, up = x[rows] @ w_gate.T, x[rows] @ w_up.T
        y = (activations.silu(gate) * up) @ w_down.T
        inside[int(e)] = rows, slots, gate, up
        out[rows] += shares[rows, slots, None] * y
    run.saved[step] = chosen, shares, inside, router
    return (out,)


def experts_back(step: Step, run: Pass, dy: np.ndarray) -> tuple[np.ndarray | None, ...]:
    """For each expert the transposes of its matrices; dshare_e = y_e dy, for the router.

    Which experts are chosen does not change with a small step: the choice has no derivative.
    """
    x = run.inputs(step)[0]
    chosen, shares, inside, router = run.saved[step]
    by_x, by_shares = np.zeros_like(x), np.zeros_like(shares)
    for e, (rows, slots, gate, up) in inside.items():
        names = [step.weights[w][e] for w in _MATRICES]
        w_gate, w_up, w_down = map(run.weight, names)
        value, slope = activations.silu_and_slope(gate)
        by_h = dy[rows] @ w_down  # before the share: h . (w_down^T dy) is y . dy
        h = value * up
        by_shares[rows, slots] = np.einsum("ti,ti->t", h, by_h)
        share = shares[rows, slots, None]
        by_h *= share
        by_gate, by_up = by_h * up * slope, by_h * value
        by_x[rows] += by_gate @ w_gate + by_up @ w_up
        inputs = (by_gate, x[rows]), (by_up, x[rows]), (dy[rows] * share, h)
        for name, (by, read) in zip(names, inputs, strict=True):
            if run.trains(name):
                run.give(name, by.T @ read)
    return by_x, _router_back(step, router, chosen, shares, by_shares)


_MATRICES = "w_gate", "w_up", "w_down"


def _choice(step: Step, router: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The chosen experts (rows, used) and their shares."""
    chosen = np.argsort(-router, axis=-1, kind="stable")[:, : int(step.numbers["used"])]
    logits = router if step.numbers["probabilities"] else np.take_along_axis(router, chosen, -1)
    shares = _softmax(logits)
    if step.numbers["probabilities"]:
        shares = np.take_along_axis(shares, chosen, -1)
    return chosen, shares


def _router_back(
    step: Step,
    router: np.ndarray,
    chosen: np.ndarray,
    shares: np.ndarray,
    by_shares: np.ndarray,
) -> np.ndarray:
    """s = softmax(z): dz = s (ds - sum(s ds)), over the chosen experts or over all."""
    inner = (shares * by_shares).sum(-1, keepdims=True)
    out = np.zeros_like(router)
    if step.numbers["probabilities"]:
        np.put_along_axis(out, chosen, by_shares, -1)
        out -= inner
        out *= _softmax(router)
        return out
    np.put_along_axis(out, chosen, shares * (by_shares - inner), -1)
    return out


def _softmax(x: np.ndarray) -> np.ndarray:
    out: np.ndarray = np.exp(x - x.max(-1, keepdims=True))
    out /= out.sum(-1, keepdims=True)
    return out
