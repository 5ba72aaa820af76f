"""The rotary positions in config.json: their base, how many values they rotate, and their scaling.

Until version 4, transformers wrote `rope_theta` and `rope_scaling`; since version 5 it writes
`rope_parameters`, with all of it.
"""

from __future__ import annotations

import math
from typing import Any

from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.json_file import JsonFile
from llama2np.model.config import RopeScaling
from llama2np.output import brief

Fields = dict[str, Any]


def rope(params: JsonFile, fields: Fields, defaults: Fields) -> Fields:
    """rope_theta, rotary_dim and rope_scaling."""
    theta = params.number(
        "rotary_emb_base", params.number("rope_theta", defaults.get("theta", 1e4))
    )
    partial = params.number(
        "partial_rotary_factor", params.number("rotary_pct", defaults.get("partial_rotary", 1))
    )
    scaling = None
    for name in ("rope_parameters", "rope_scaling"):  # transformers 5 prefers the last
        rope = params.get(name)
        if rope is None or rope == {}:
            continue
        if not isinstance(rope, dict):
            raise CheckpointError(f"{params.path}: {name}={brief(rope)}, expected an object")
        inner = params.inner(name)
        if isinstance(rope.get("full_attention"), dict):  # one for each type of layer
            inner = inner.inner("full_attention")
        if name == "rope_scaling":  # the base beside it belongs to it
            theta = params.number("rope_theta", theta)
        theta = inner.number("rope_theta", theta)
        partial = inner.number("partial_rotary_factor", partial)
        scaling = _scaling(params, inner, fields)
    rotary = int(fields["head_dim"] * partial)
    if not rotary:
        raise ValueError(f"partial_rotary_factor={partial} leaves no value to rotate")
    if rotary != fields["head_dim"] and "partial_rotary" not in defaults:
        raise ValueError(
            f"partial_rotary_factor={partial}, expected 1: transformers ignores it in a "
            f"{params.get('model_type')}, other programs use it"
        )
    changed: Fields = {"rope_theta": theta, "rotary_dim": rotary, "rope_scaling": scaling}
    if scaling and scaling.kind == "dynamic":  # it is for texts of up to this length
        changed["seq_len"] = int(fields["seq_len"] * scaling.factor)
    return changed


def _scaling(params: JsonFile, rope: JsonFile, fields: Fields) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type")
    if kind in ("default", None):
        return None
    if kind == "su" or (kind == "yarn" and params.get("model_type") == "phi3"):
        kind = "longrope"  # old names of it
    if kind not in ("linear", "llama3", "dynamic", "yarn", "longrope"):
        raise CheckpointError(f"{rope.path}: {brief(kind)}: this RoPE scaling is not supported yet")
    context = fields["seq_len"]
    top = params.whole("original_max_position_embeddings", context)
    original = rope.whole("original_max_position_embeddings", top)
    if kind == "dynamic":
        original = context
    if kind == "longrope":
        return _longrope(rope, original, context)
    numbers: Fields = {"factor": rope.number("factor"), "original_len": original}
    if kind == "llama3":
        for name in ("low_freq_factor", "high_freq_factor"):
            numbers[name] = rope.number(name)
    if kind == "yarn":
        numbers |= {
            "beta_fast": rope.number("beta_fast", 32),
            "beta_slow": rope.number("beta_slow", 1),
            "truncate": rope.flag("truncate", True),
            "attention_factor": rope.number("attention_factor", _yarn_factor(rope)),
        }
    return RopeScaling(kind, **numbers)


def _yarn_factor(rope: JsonFile) -> float:
    """The factor of cos and sin: m(mscale) / m(mscale_all_dim), else m(1)."""
    s = rope.number("factor")

    def m(k: float) -> float:
        return 0.1 * k * math.log(s) + 1 if s > 1 else 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return m(rope.number("mscale")) / m(rope.number("mscale_all_dim"))
    return m(1)


def _longrope(rope: JsonFile, original: int, context: int) -> RopeScaling:
    lists: dict[str, tuple[float, ...]] = {}
    for name in ("short_factor", "long_factor"):
        values = rope.get(name)
        if not isinstance(values, list) or not all(
            isinstance(v, int | float) and not isinstance(v, bool) and 0 < v < 1e30 for v in values
        ):
            raise CheckpointError(
                f"{rope.path}: {name}={brief(values)}, expected a list of numbers above 0"
            )
        lists[f"{name}s"] = tuple(float(v) for v in values)
    s = rope.number("factor", context / original)
    usual = math.sqrt(1 + math.log(s) / math.log(original)) if s > 1 and original > 1 else 1.0
    factor = rope.number("attention_factor", usual)
    return RopeScaling(
        *("longrope", s, original),
        attention_factor=factor,
        short_factors=lists["short_factors"],
        long_factors=lists["long_factors"],
    )
