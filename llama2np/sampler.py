"""Logits to a token, with run.c's random generator and its order of float32 operations."""

from __future__ import annotations

import math
import os

import numpy as np

from llama2np import kernels

_MASK = 2**64 - 1


class Sampler:
    """Picks the next token: the best one at temperature 0, else one by chance.

    With 0 < top_p < 1 only the likeliest tokens that together exceed top_p take part (nucleus
    sampling, Holtzman et al. 2019); at 0 or 1 all do. `seed` gives run.c's choices for the same
    seed, a different one each time where it is None or 0. Raises ValueError.
    """

    def __init__(self, temperature: float = 1.0, top_p: float = 0.9, seed: int | None = None):
        if temperature != 0 and not 1e-30 <= temperature <= 1e30:  # else float32 overflows
            raise ValueError(f"temperature must be 0, or 1e-30 to 1e30, not {temperature}")
        if not 0 <= top_p <= 1:
            raise ValueError(f"top_p must be 0 to 1, not {top_p}")
        if seed is not None and not -(2**63) <= seed < 2**64:
            raise ValueError(f"seed must fit into 64 bits, not {seed}")
        self.temperature = np.float32(temperature)
        self.top_p = np.float32(top_p)
        self._random = (seed or int.from_bytes(os.urandom(8), "little") | 1) & _MASK
        self._probabilities = np.zeros(0, np.float32)

    def sample(self, logits: np.ndarray) -> int:
        """Return a token. logits: (vocab_size,) float32, left as they are; -inf is never chosen.

        Raises ValueError for nan and inf, and if there is nothing to choose: broken weights.
        """
        if self.temperature == 0:
            best = int(logits.argmax())  # the first nan, where there is one
            _check_finite(logits[best])
            return best
        if len(self._probabilities) != len(logits):
            self._probabilities = np.zeros(len(logits), np.float32)
        probabilities, coin = self._probabilities, self._draw()
        kernels.softmax(logits, self.temperature, probabilities)
        _check_finite(probabilities[0])  # nan and inf spread to all
        if 0 < self.top_p < 1:
            return self._nucleus(probabilities, coin)
        return _pick(probabilities, coin)

    def skip(self, count: int) -> None:
        """Let `count` draws pass, as run.c's chat does for the tokens of a prompt."""
        if self.temperature != 0:
            for _ in range(count):
                self._draw()

    def _draw(self) -> np.float32:
        """A float32 in [0, 1): xorshift64* (Marsaglia 2003, Vigna 2016), its upper 24 bits."""
        s = self._random
        s ^= s >> 12
        s ^= s << 25 & _MASK
        s ^= s >> 27
        self._random = s
        return np.float32(((s * 0x2545F4914F6CDD1D & _MASK) >> 40) / 2**24)

    def _nucleus(self, probabilities: np.ndarray, coin: np.float32) -> int:
        # What cannot be among the likeliest top_p is left out before sorting.
        cutoff = (np.float32(1) - self.top_p) / np.float32(max(len(probabilities) - 1, 1))
        tokens = np.flatnonzero(probabilities >= cutoff)
        if not tokens.size:  # possible with a tiny top_p and near-uniform logits; run.c reads junk
            return int(probabilities.argmax())
        # glibc's qsort is a stable merge sort, so equals stay in index order.
        tokens = tokens[np.argsort(-probabilities[tokens], kind="stable")]
        cumulative = np.cumsum(probabilities[tokens])
        last = min(int(np.searchsorted(cumulative, self.top_p, side="right")), len(tokens) - 1)
        return int(tokens[_pick(cumulative[: last + 1], coin * cumulative[last], summed=True)])


def _pick(probabilities: np.ndarray, coin: np.float32, summed: bool = False) -> int:
    """The first index whose cumulative sum exceeds `coin`, the last one if none does."""
    cumulative = probabilities if summed else np.cumsum(probabilities)
    return min(int(np.searchsorted(cumulative, coin, side="right")), len(cumulative) - 1)


def _check_finite(number: np.float32) -> None:
    if not math.isfinite(number):
        raise ValueError("the model's logits are not finite: its weights are damaged")
