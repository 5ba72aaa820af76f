"""Changes to logits before a token is drawn: pure functions of a few lines each.

The argument logits (vocab_size,) float32 is not changed; a new array is returned. The docstring of
`Sampler` has the order in which they are applied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from llama2np.arguments import none_means_default, number, whole

_NEVER = np.float32(-np.inf)


def add_bias(logits: np.ndarray, bias: Mapping[int, float]) -> np.ndarray:
    """Add bias[token] to the logit of each token (OpenAI's logit_bias); -inf forbids it.

    Raises ValueError for a token outside the vocabulary.
    """
    check_bias(bias, len(logits))
    biased = logits.copy()
    for token, value in bias.items():
        biased[token] += np.float32(value)
    return biased


def forbid(logits: np.ndarray, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    """Set the logits of `tokens` to -inf. Without tokens the array itself is returned."""
    if not len(tokens):
        return logits
    allowed = logits.copy()
    allowed[tokens] = _NEVER
    return allowed


def check_bias(bias: Mapping[int, float], vocab_size: int) -> None:
    """Raise ValueError for a token outside the vocabulary."""
    if max(bias, default=0) >= vocab_size:
        raise ValueError(
            f"logit_bias has token {max(bias)}, the vocabulary ends at {vocab_size - 1}"
        )


def penalize_repetition(
    logits: np.ndarray, tokens: Sequence[int] | np.ndarray, penalty: float
) -> np.ndarray:
    """Divide positive logits of `tokens` by `penalty`, multiply negative ones (Keskar et al. 2019).

    Each token counts once, however often it occurs.
    """
    seen = np.unique(np.asarray(tokens, np.int64))
    penalized, theirs, factor = logits.copy(), logits[seen], np.float32(penalty)
    with np.errstate(over="ignore"):
        penalized[seen] = np.where(theirs > 0, theirs / factor, theirs * factor)
    return penalized


@none_means_default
def penalize_frequency(
    logits: np.ndarray,
    tokens: Sequence[int] | np.ndarray,
    presence: float | None = 0.0,
    frequency: float | None = 0.0,
) -> np.ndarray:
    """Subtract `presence` from the logits of `tokens`, and `frequency` for each occurrence.

    These are OpenAI's presence_penalty and frequency_penalty.
    """
    presence, frequency = number("presence", presence), number("frequency", frequency)
    counts = np.bincount(np.asarray(tokens, np.int64), minlength=len(logits))
    return logits - (presence * (counts > 0) + frequency * counts).astype(np.float32)


@none_means_default
def keep_min_p(logits: np.ndarray, min_p: float, temperature: float | None = 1.0) -> np.ndarray:
    """Forbid tokens less than `min_p` times as probable as the most probable (Nguyen et al. 2024).

    min_p: more than 0, up to 1. The probabilities are those after division by `temperature`.
    """
    temperature = number("temperature", temperature)
    minimum = logits.max() + np.float32(temperature * math.log(min_p))
    return np.where(logits < minimum, _NEVER, logits)


def keep_top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Forbid all tokens except the `k` with the largest logits (Fan et al. 2018).

    Tokens whose logit equals the k-th largest are kept, too.
    """
    k = whole("k", k, 1)
    if k >= len(logits):
        return logits.copy()
    return np.where(logits < np.partition(logits, -k)[-k], _NEVER, logits)


def top_tokens(logits: np.ndarray, count: int) -> np.ndarray:
    """The tokens of the `count` largest logits, largest first; of equal ones, the lower token."""
    count = min(whole("count", count, 0), len(logits))
    if count == 0:
        return np.zeros(0, np.int64)
    tokens = np.flatnonzero(logits >= np.partition(logits, -count)[-count])
    return tokens[np.argsort(-logits[tokens], kind="stable")][:count]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities of the tokens in nats, float64. logits: (..., vocab_size)."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
