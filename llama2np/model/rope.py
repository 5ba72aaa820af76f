"""Rotary positions (Su et al. 2021): the frequency of each pair, and how it is scaled.

The formulas are from transformers' modeling_rope_utils.py. f is the unscaled frequency, s the
factor, L `original_len`.
"""

from __future__ import annotations

import math

import numpy as np

from llama2np.model.config import Config, DualChunk, RopeScaling


@np.errstate(all="ignore")  # an absurd base or factor makes the logits nan
def frequencies(config: Config, length: int = 1, local: bool = False) -> np.ndarray:
    """The angle of each pair per position, (rotary_dim / 2,) float32.

    length: the positions of the sequence, of which some kinds of scaling make use. local: for the
    layers with a window, if these have a base of their own.
    """
    c = config
    if local and c.local_rope_theta:
        return _plain(c.local_rope_theta, c.rotary_dim)
    scaling = c.rope_scaling
    if scaling is None:
        return _plain(c.rope_theta, c.rotary_dim)
    if scaling.kind == "dynamic":
        return _plain(_dynamic_theta(c, scaling, length), c.rotary_dim)
    f = _plain(c.rope_theta, c.rotary_dim)
    if scaling.kind == "linear":
        return f / np.float32(scaling.factor)
    if scaling.kind == "llama3":
        return _llama3(f, scaling)
    if scaling.kind == "yarn":
        return _yarn(f, scaling, c)
    factors = scaling.long_factors if length > scaling.original_len else scaling.short_factors
    return f / np.asarray(factors, np.float32)  # longrope


def magnitude(config: Config, local: bool = False) -> float:
    """The factor of cos and sin."""
    scaled = config.rope_scaling is not None and not (local and config.local_rope_theta)
    return config.rope_scaling.attention_factor if scaled and config.rope_scaling else 1.0


def depends_on_length(config: Config) -> bool:
    """Whether the rotation of a position depends on the number of positions of its sequence."""
    scaling, chunks = config.rope_scaling, config.dual_chunk
    by_length = scaling is not None and (
        scaling.kind == "dynamic" or scaling.short_factors != scaling.long_factors
    )
    return by_length or (chunks is not None and scores_factor(chunks, config.seq_len) != 1)


def scores_factor(chunks: DualChunk, length: int) -> float:
    """YaRN's factor of the attention scores for dual chunk attention over `length` positions."""
    if not 0 < chunks.original_len < length or chunks.scaling == "none":
        return 1.0
    return 0.1 * math.log(length / chunks.original_len) + 1.0


def _plain(theta: float, width: int) -> np.ndarray:
    """run.c's expression in its precision: 1 / powf(theta, i / width) for i = 0, 2, 4 ..."""
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    powers = np.float64(theta) ** exponents.astype(np.float64)
    return np.float32(1) / powers.astype(np.float32)


def _dynamic_theta(c: Config, scaling: RopeScaling, length: int) -> float:
    """NTK scaling: the base grows with a sequence that is longer than the original context."""
    n, s = max(length, scaling.original_len), scaling.factor
    grown = s * n / scaling.original_len - (s - 1)
    return float(c.rope_theta * grown ** (c.rotary_dim / (c.rotary_dim - 2)))


def _llama3(f: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Long waves become s times longer, short ones stay, and those between become a bit longer."""
    waves = scaling.original_len * f / np.float32(2 * math.pi)  # in the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((waves - low) / (high - low), 0, 1).astype(np.float32)
    mixed: np.ndarray = (1 - kept) * f / np.float32(scaling.factor) + kept * f
    return mixed


def _yarn(f: np.ndarray, scaling: RopeScaling, c: Config) -> np.ndarray:
    """YaRN (Peng et al. 2023): like llama3, but the ramp is linear in the number of the pair."""
    d, original = c.rotary_dim, scaling.original_len

    def pair(turns: float) -> float:
        """The pair that makes this many turns in the original context."""
        return d * math.log(original / (2 * math.pi * turns)) / (2 * math.log(c.rope_theta))

    low, high = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(d // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    ramp = ramp.astype(np.float32)
    mixed: np.ndarray = f * (1 - ramp) + f / np.float32(scaling.factor) * ramp
    return mixed
