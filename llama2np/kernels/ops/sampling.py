"""Sample a token from logits, with run.c's order of float32 operations."""

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

    temperature, top_p, coin: float32, the coin in [0, 1). The token is one of the most probable
    that together exceed top_p (Holtzman 2019), or any if top_p is 0 or 1. probabilities: (n,)
    float32, becomes softmax(logits / temperature); heap: (n,) int64, scratch.
    """
    softmax(logits, temperature, probabilities)
    if not np.isfinite(probabilities[0]):  # a nan or inf makes all of them nan
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
    # Because of rounding, the sum is not above the coin.
    return last if logits[-1] == -np.inf else probabilities.shape[0] - 1


@inner
def _nucleus(probabilities, top_p, coin, heap):
    """A token among the most probable that together exceed `top_p`."""
    cutoff = (np.float32(1) - top_p) / np.float32(max(probabilities.shape[0] - 1, 1))
    count, best = 0, 0
    for i in range(probabilities.shape[0]):
        if probabilities[i] > probabilities[best]:
            best = i
        if probabilities[i] >= cutoff:
            heap[count] = i
            count += 1
    if not count:  # possible with a tiny top_p and almost equal logits; run.c reads garbage
        return best
    # A heapsort as far as needed: the most probable token is put at the end, the next before it ...
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
    """Sift the token at `root` down below all that come before it: more probable, or equal with a
    lower number. glibc's qsort, which run.c uses, is a stable merge sort and keeps this order.
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
