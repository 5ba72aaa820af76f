"""From the steps of a program to the rows of a table: the ops of each step, and their fields.

products.py decides which matrix product is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from llama2np.kernels.entries import Entry, Lowered, row_entry
from llama2np.kernels.matmul import block_kinds
from llama2np.kernels.ops import attention, experts, linear, positions, rows
from llama2np.kernels.products import FEW, TERMS, expert_products, of_one_kind, products
from llama2np.model import rope
from llama2np.model.block import NO_LIMIT, OUTSIDE
from llama2np.model.gguf_blocks import Blocks
from llama2np.model.program import Program, Step, Value
from llama2np.model.weights import Int8, Matrix


def make_all_ops() -> None:
    """Make also the ops that are otherwise made when a network first needs them."""
    for chunked in (False, True):
        attention.attend(chunked)
    for kind in FEW:
        if kind in block_kinds.KINDS:
            for make in (rows.embed_blocks, linear.blocks_few, linear.blocks_many):
                make(kind)
        experts.product(kind)
        if kind in ("float32", "bfloat16", "float16"):
            for make in (rows.embed_float, linear.float_few, linear.float_many):
                make(kind)


class How(NamedTuple):
    """What the entries of a step depend on, besides its rows."""

    chunk: int  # positions of a chunk of the KV cache
    terms: Mapping[str, int]  # by steps, see products.TERMS


def lower(
    program: Program, count: int, wanted: int, chunk: int, activations: str = "int8"
) -> Lowered:
    """The entries for `count` rows, of which `wanted` get logits.

    chunk: positions of a chunk of the KV cache. activations: one of model/engine.py.
    """
    made, how = Lowered(), How(chunk, TERMS[activations])
    for step in program.steps:
        made.starts.append(len(made.entries))
        if step.op in OUTSIDE:
            made.outside.append((len(made.entries), step))
            continue
        made.entries += _LOWER[step.op](
            program, step, wanted if step.op == "logits" else count, how
        )
    made.starts.append(len(made.entries))
    return made


def _embed(program: Program, step: Step, count: int, how: How) -> list[Entry]:
    (name,), (out,) = step.weights["table"], step.outputs
    table = program.matrix(name)
    fields = {"out": out, "table": table.arrays[0], **step.numbers}
    if isinstance(table, Int8):
        extra = {"scales": table.scales, "group": table.group}
        return [row_entry(rows.embed_int8, step, out.width, "embed", **fields, **extra)]
    if isinstance(table, Blocks):
        return [row_entry(rows.embed_blocks(table.kind), step, out.width, "embed", **fields)]
    return [row_entry(rows.embed_float(table.kind), step, out.width, "embed", **fields)]


def _norm(program: Program, step: Step, count: int, how: How) -> list[Entry]:
    (x,), (out,) = step.inputs.values(), step.outputs
    vectors = {kind: program.weights[names[0]] for kind, names in step.weights.items()}
    fields = {"x": x, "out": out, **step.numbers, **vectors}
    entry = row_entry(getattr(rows, step.op), step, x.width, step.op, **fields)
    entry.in_place = True
    return [entry]


def _elementwise(program: Program, step: Step, count: int, how: How) -> list[Entry]:
    (out,) = step.outputs
    fields = {**step.inputs, "out": out, **step.numbers}
    entry = row_entry(getattr(rows, step.op), step, out.width, step.op, **fields)
    entry.in_place = True
    return [entry]


def _angles(program: Program, step: Step, count: int, how: How) -> list[Entry]:
    cos, sin = step.outputs
    c, numbers = program.config, dict(step.numbers)
    local = bool(numbers.pop("local"))
    fields: dict[str, Any] = {"cos": cos, "sin": sin, **numbers}
    fields["magnitude"] = rope.magnitude(c, local)
    fixed = local or not rope.depends_on_length(c)
    fields["frequencies"] = rope.frequencies(c, local=local) if fixed else 0
    return [row_entry(positions.angles, step, cos.width, "angles", **fields)]


def _rope(program: Program, step: Step, count: int, how: How) -> list[Entry]:
    *values, cos, sin = step.inputs.values()
    fields: dict[str, Any] = {"cos": cos, "sin": sin, **step.numbers}
    for name, value, out in zip("qk", values, step.outputs, strict=False):
        fields |= {name: value, f"{name}_out": out, f"{name}_width": out.width}
    width = sum(out.width for out in step.outputs)
    entry = row_entry(positions.rope, step, width, "rope", **fields)
    entry.in_place = True
    return [entry]


def _attention(program: Program, step: Step, count: int, how: How) -> list[Entry]:
    (out,), inputs, n = step.outputs, dict(step.inputs), step.numbers
    k, v = inputs.pop("k"), inputs.pop("v")
    heads = {name: n[name] for name in ("n_kv_heads", "head_dim")}
    cache = {**heads, "layer": step.layer or 0, "chunk": how.chunk}
    append = row_entry(attention.append, step, 2 * k.width, "append", k=k, v=v, **cache)
    append.outputs = ()
    fields = {**inputs, **n, **cache, "out": out, "units": n["n_heads"], "n": out.width}
    fields |= {"window": n["window"] or NO_LIMIT, "seen_work": 2 * out.width}
    return [append, Entry(attention.attend(bool(n["stride"])), fields, step.outputs)]


def _experts(program: Program, step: Step, count: int, how: How) -> list[Entry]:
    """The two steps that ranks exchange something between (see model/rank_block.py), as one."""
    used, hidden = int(step.numbers["used"]), program.matrix(step.weights["w_gate"][0]).shape[0]
    made = Value("", used * hidden), Value("", used), Value("", used)
    first = replace(step, outputs=made)
    second = replace(step, inputs=dict(zip(("mlp", "shares", "chosen"), made, strict=True)))
    return _experts_hidden(program, first, count, how) + _experts_out(program, second, count, how)


def _experts_hidden(program: Program, step: Step, count: int, how: How) -> list[Entry]:
    """Choose the experts of each row, put the rows of each expert next to each other, and multiply
    them by its matrices. A value of width used * n has the same layout as `used` rows of width n,
    so the same ops can be used for both.
    """
    (x, router), (mlp, shares, chosen) = step.inputs.values(), step.outputs
    used, terms = int(step.numbers["used"]), how.terms["experts"]
    gates, ups = _of_experts(program, step, "w_gate"), _of_experts(program, step, "w_up")
    fields = {"router": router, "shares": shares, "chosen": chosen, **step.numbers}
    choose = row_entry(experts.choose, step, len(gates), "choose", **fields)
    choose.outputs = (shares, chosen)
    sort, places, lists = _sorted(chosen, used, len(gates))
    grouped = Value("", used * x.width)
    gate, up = Value("", mlp.width), Value("", mlp.width)
    fields = {"x": x, "places": places, "out": grouped, "used": used}
    gather = row_entry(experts.gather, step, x.width, "gather", **fields)
    gather.outputs = (grouped,)
    products = expert_products(
        grouped, x.width, [gates, ups], [gate, up], lists, terms, used, count
    )
    swiglu = row_entry(rows.swiglu, step, mlp.width, "swiglu", gate=gate, up=up, out=mlp)
    swiglu.outputs, swiglu.in_place = (mlp,), True
    return [choose, sort, gather, *products, swiglu]


def _experts_out(program: Program, step: Step, count: int, how: How) -> list[Entry]:
    """Multiply the hidden units of each expert, and add up the results that belong to each row."""
    (mlp, shares, chosen), (out,) = step.inputs.values(), step.outputs
    used, terms = int(step.numbers["used"]), how.terms["experts"]
    downs = _of_experts(program, step, "w_down")
    sort, places, lists = _sorted(chosen, used, len(downs))
    y, hidden = Value("", used * out.width), mlp.width // used
    products = expert_products(mlp, hidden, [downs], [y], lists, terms, used, count)
    fields = {"y": y, "shares": shares, "places": places, "out": out, "used": used}
    return [sort, *products, row_entry(experts.combine, step, out.width, "combine", **fields)]


def _of_experts(program: Program, step: Step, kind: str) -> list[Matrix]:
    return [program.matrix(name) for name in step.weights[kind]]


def _sorted(chosen: Value, used: int, n_experts: int) -> tuple[Entry, Value, dict[str, Value]]:
    """The entry that sorts the chosen experts: the place of each, and the lists of its products."""
    places, starts, active = Value("", used), Value("", n_experts + 1), Value("", used + 1)
    lists = {"starts": starts, "active": active}
    fields = {"chosen": chosen, "places": places, **lists, "used": used, "n_experts": n_experts}
    fields |= {"units": 1, "work": used, "n": used}
    return Entry(experts.sort, fields, (places, starts, active)), places, lists


def _linear(program: Program, step: Step, count: int, how: How) -> list[Entry]:
    (x,) = step.inputs.values()
    matrices, outs = program.matrices(step), list(step.outputs)
    entries = []
    for some in of_one_kind(matrices):
        some_outs = [outs[i] for i in some]
        entries += products(x, [matrices[i] for i in some], some_outs, count, how.terms[step.op])
    for name, out in zip(step.weights.get("bias", ()), outs, strict=False):
        if name:
            fields = {"x": out, "out": out, "bias": program.weights[name]}
            entries.append(row_entry(rows.add_bias, step, out.width, "add_bias", **fields))
            entries[-1].outputs = ()
    return entries


def _logits(program: Program, step: Step, count: int, how: How) -> list[Entry]:
    """First copy the rows that need logits next to each other; for one row, no copy is needed."""
    (x,) = step.inputs.values()
    picked = Value("", x.width)
    first = row_entry(rows.pick, step, x.width, "pick", x=x, out=picked)
    first.outputs = (picked,)
    inner = Step(step.op, {"x": picked}, step.weights, step.outputs, step.layer, step.numbers)
    entries = [first, *_linear(program, inner, count, how)]
    if cap := step.numbers["softcap"]:
        (out,) = step.outputs
        fields = {"x": out, "out": out, "softcap": cap}
        entries.append(row_entry(rows.softcap, step, out.width, "softcap", **fields))
        entries[-1].outputs = ()
    for entry in entries:
        entry.picked = True
    return entries


_Lower = Callable[[Program, Step, int, How], list[Entry]]
_LOWER: dict[str, _Lower] = {
    "embed": _embed,
    "rmsnorm": _norm,
    "layernorm": _norm,
    "linear": _linear,
    "angles": _angles,
    "rope": _rope,
    "attention": _attention,
    "swiglu": _elementwise,
    "geglu": _elementwise,
    "gelu": _elementwise,
    "tanh": _elementwise,
    "scale": _elementwise,
    "experts": _experts,
    "experts_hidden": _experts_hidden,
    "experts_out": _experts_out,
    "add": _elementwise,
    "logits": _logits,
}
