"""Attention in NumPy, for the NumPy engine and for hooks, by the rule of a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llama2np.model.program import Step


@dataclass(frozen=True, slots=True)
class Rule:
    """Which positions a token attends to in a step of attention, and how the scores are made."""

    causal: bool
    window: int  # the positions that a token attends to, itself included; 0 means all
    divisor: float  # of the scores
    softcap: float  # 0 means none
    stride: int  # of dual chunk attention; 0 means none

    @classmethod
    def of(cls, step: Step) -> Rule:
        """The rule of a step."""
        n = step.numbers
        return cls(
            bool(n["causal"]), int(n["window"]), n["divisor"], n["softcap"], int(n["stride"])
        )

    def visible(self, positions: np.ndarray, end: int) -> np.ndarray:
        """Whether tokens at positions (T,) attend to the positions 0 ... end - 1: (T, end)."""
        keys, own = np.arange(end), positions[:, None]
        if not self.causal:
            return np.ones((len(positions), end), bool)
        seen: np.ndarray = keys <= own
        return seen & (keys > own - self.window) if self.window else seen


def attention_weights(
    queries: list[np.ndarray], keys: np.ndarray, positions: np.ndarray, rule: Rule
) -> np.ndarray:
    """The attention weights (n_heads, T, end): each row sums to 1.

    queries: (T, n_heads, head_dim) at `positions` (T,), after RoPE; for dual chunk attention three
    of them, for keys of the same chunk, of the one before, and of all others. keys: (n_kv_heads,
    end, head_dim).
    """
    end = keys.shape[1]
    scores = _scores(queries[0], keys)
    if rule.stride:
        chunks = positions[:, None] // rule.stride - np.arange(end) // rule.stride
        scores = np.where(chunks == 1, _scores(queries[1], keys), scores)
        scores = np.where(chunks > 1, _scores(queries[2], keys), scores)
    scores /= np.float32(rule.divisor)
    if rule.softcap:
        scores = np.float32(rule.softcap) * np.tanh(scores / np.float32(rule.softcap))
    scores[:, ~rule.visible(positions, end)] = -np.inf
    shares: np.ndarray = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    return shares


def _scores(q: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """q k: (n_heads, T, end)."""
    count, n_heads, head_dim = q.shape
    grouped = q.swapaxes(0, 1).reshape(len(keys), -1, head_dim)  # heads that share their keys
    found: np.ndarray = (grouped @ keys.swapaxes(1, 2)).reshape(n_heads, count, -1)
    return found


def weighted_values(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The sums of values (n_kv_heads, end, head_dim) by weights: (T, n_heads, head_dim)."""
    grouped = weights.reshape(len(values), -1, weights.shape[2]) @ values
    summed: np.ndarray = grouped.reshape(*weights.shape[:2], -1).swapaxes(0, 1)
    return summed
