"""How a GGUF file says that the rotary frequencies are scaled."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from llama2np.formats.gguf.file import GgufTensor
from llama2np.formats.gguf.metadata import Metadata
from llama2np.model.config import RopeScaling
from llama2np.output import brief


def rope_scaling(data: Metadata, tensors: Mapping[str, GgufTensor]) -> RopeScaling | None:
    """The scaling, if any. Raises ValueError for one that is not known.

    Llama 3's is a table of divisors, rope_freqs.weight; Phi-3's (longrope) are two tables. The
    others are keys.
    """
    length, key = data.whole(".context_length"), ".rope.scaling"
    original = data.whole(f"{key}.original_context_length", 0) or length
    factor = data.number(f"{key}.attn_factor", 1.0)
    if "rope_factors_long.weight" in tensors:
        short, long = (_table(tensors, f"rope_factors_{name}.weight") for name in ("short", "long"))
        return RopeScaling(
            "longrope",
            original_len=original,
            attention_factor=factor,
            short_factors=short,
            long_factors=long,
        )
    if "rope_freqs.weight" in tensors:
        table = _table(tensors, "rope_freqs.weight")
        return RopeScaling("longrope", original_len=length, short_factors=table, long_factors=table)
    kind = data.text(f"{key}.type", "linear")  # of a file that has a factor only
    scale = data.number(f"{key}.factor", 0.0)
    if not scale and (old := data.number(".rope.scale_linear", 0.0)):
        kind, scale = "linear", old  # the key of 2023
    if kind == "none" or scale in (0.0, 1.0):
        return None
    if kind == "linear":
        return RopeScaling("linear", scale)
    if kind != "yarn":
        raise ValueError(f"{data.full(key)}.type is {brief(kind)}, expected none, linear or yarn")
    return RopeScaling(
        "yarn",
        scale,
        original,
        beta_fast=data.number(f"{key}.yarn_beta_fast", 32.0),
        beta_slow=data.number(f"{key}.yarn_beta_slow", 1.0),
        attention_factor=factor * yarn_magnitude(scale),
    )


def yarn_magnitude(factor: float) -> float:
    """YaRN's own factor of cos and sin."""
    return 0.1 * math.log(max(factor, 1.0)) + 1.0


def _table(tensors: Mapping[str, GgufTensor], name: str) -> tuple[float, ...]:
    """The divisor of each frequency."""
    if name not in tensors:
        raise ValueError(f"has no {name}")
    return tuple(np.asarray(tensors[name].floats(), np.float32).ravel().tolist())
