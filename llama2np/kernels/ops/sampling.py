"""From logits to a token by chance, with run.c's order of float32 operations."""

import numpy as np
from numba import float32, int64

from llama2np.kernels.ops.exp import exps
from llama2np.kernels.runtime.jit import exact, inner
from llama2np.kernels.runtime.link import LINKED


@exact
def softmax(logits, temperature, out):
    """out = softmax(logits / temperature), in run.c's order of additions. logits, out: (n,)."""
    for i in range(logits.shape[0]):
        out[i] = logits[i]
    exps(out, out.shape[0], temperature)
    total = np.float32(0)
    for i in range(out.shape[0]):
        total += out[i]
    for i in range(out.shape[0]):
        out[i] /= total


@exact
def sample(logits, temperature, top_p, coin, probabilities, heap):
    """A token of logits (n,), or -1 if they are not finite; -inf is never drawn.

    temperature, top_p, coin: float32, the coin in [0, 1). Only the likeliest that together exceed
    top_p are drawn from (Holtzman 2019), from all if it is 0 or 1. probabilities: (n,) float32,
    becomes softmax(logits / temperature); heap: (n,) int64, scratch.
    """
    softmax(logits, temperature, probabilities)
    if not np.isfinite(probabilities[0]):  # nan and inf spread to all
        return -1
    if 0 < top_p < 1:
        return _nucleus(probabilities, top_p, coin, heap)
    total, last = np.float32(0), 0
    for i in range(probabilities.shape[0]):
        total += probabilities[i]
        if total > coin:
            return i
        if probabilities[i] > 0:
            last = i
    # The sum is rounded below the coin.
    return last if logits[-1] == -np.inf else probabilities.shape[0] - 1


@inner
def _nucleus(probabilities, top_p, coin, heap):
    """A token among the likeliest that together exceed `top_p`."""
    # What cannot be among them is left out before sorting.
    cutoff = (np.float32(1) - top_p) / np.float32(max(probabilities.shape[0] - 1, 1))
    count, best = 0, 0
    for i in range(probabilities.shape[0]):
        if probabilities[i] > probabilities[best]:
            best = i
        if probabilities[i] >= cutoff:
            heap[count] = i
            count += 1
    if not count:  # possible with a tiny top_p and near-uniform logits; run.c reads junk
        return best
    # A heap, sorted as far as needed: the likeliest goes to the end, the next one before it, ...
    total, root, left = np.float32(0), count // 2, count
    while left and total <= top_p:
        if root > 0:
            root -= 1
        else:
            left -= 1
            heap[0], heap[left] = heap[left], heap[0]
            total += probabilities[heap[left]]
        _sift(probabilities, heap, root, left)
    edge, total = coin * total, np.float32(0)
    for i in range(count - 1, left, -1):
        total += probabilities[heap[i]]
        if total > edge:
            return heap[i]
    return heap[left]


@inner
def _sift(probabilities, heap, root, count):
    """Let the token at `root` sink below all that are likelier, or as likely and before it.

    glibc's qsort is a stable merge sort, so equals stay in the order of their numbers.
    """
    token, child = heap[root], 2 * root + 1
    while child < count:
        if child + 1 < count and _before(probabilities, heap[child + 1], heap[child]):
            child += 1
        if not _before(probabilities, heap[child], token):
            break
        heap[root] = heap[child]
        root, child = child, 2 * child + 1
    heap[root] = token


@inner
def _before(probabilities, a, b):
    p, q = probabilities[a], probabilities[b]
    return p > q or (p == q and a < b)


_FLOATS = float32[::1]
LINKED[sample] = _FLOATS, float32, float32, float32, _FLOATS, int64[::1]
