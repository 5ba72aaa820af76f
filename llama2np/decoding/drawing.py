"""Draw a token from logits with NumPy: the counterpart of kernels/ops/sampling.py."""

from __future__ import annotations

import numpy as np


def sample(
    logits: np.ndarray,
    temperature: np.float32,
    top_p: np.float32,
    coin: np.float32,
    probabilities: np.ndarray,
    _heap: np.ndarray,
) -> int:
    """A token of logits (n,) float32, or -1 if they are not finite; -inf is never drawn.

    The coin is in [0, 1). If 0 < top_p < 1, only the most likely tokens that together exceed it are
    drawn from (Holtzman et al. 2019). probabilities: (n,), becomes softmax(logits / temperature).
    Additions are in run.c's order.
    """
    scaled = logits / temperature
    with np.errstate(invalid="ignore"):
        probabilities[:] = np.exp((scaled - scaled.max()).astype(float))
    total = np.cumsum(probabilities, dtype=np.float32)[-1]  # in the order of a loop
    probabilities /= total
    if not np.isfinite(probabilities[0]):  # nan and inf spread to all
        return -1
    if 0 < top_p < 1:
        return _nucleus(probabilities, top_p, coin)
    found = np.flatnonzero(np.cumsum(probabilities, dtype=np.float32) > coin)
    if found.size:
        return int(found[0])
    # Because of rounding, the sum is not above the coin.
    last = len(probabilities) - 1
    return int(np.flatnonzero(probabilities > 0)[-1]) if logits[-1] == -np.inf else last


def _nucleus(probabilities: np.ndarray, top_p: np.float32, coin: np.float32) -> int:
    """A token among the most likely that together exceed `top_p`."""
    cutoff = (np.float32(1) - top_p) / np.float32(max(len(probabilities) - 1, 1))
    tokens = np.flatnonzero(probabilities >= cutoff)
    if not tokens.size:  # possible with a tiny top_p and almost equal logits
        return int(probabilities.argmax())
    tokens = tokens[np.argsort(-probabilities[tokens], kind="stable")]
    sums = np.cumsum(probabilities[tokens], dtype=np.float32)
    count = min(int(np.searchsorted(sums, top_p, side="right")) + 1, len(tokens))
    edge = coin * sums[count - 1]
    at = int(np.searchsorted(sums[:count], edge, side="right"))
    return int(tokens[min(at, count - 1)])
