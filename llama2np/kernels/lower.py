"""From the steps of a program to the rows of a table: the ops of each step, and their fields.

`_products` alone decides which matrix product is used for how many rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llama2np.kernels.matmul import block_kinds, block_rows, block_tiles, float32, int8_tiles
from llama2np.kernels.ops import attention, experts, linear, positions, rows
from llama2np.kernels.runtime.jit import PLAIN
from llama2np.kernels.runtime.op import MOST, Op
from llama2np.model import rope
from llama2np.model.block import NO_LIMIT
from llama2np.model.blocks import Blocks
from llama2np.model.program import Program, Step, Value
from llama2np.model.weights import Int8, Matrix

# The small batch: up to this number of rows the kernels for few rows are faster, by number format.
FEW = {
    "float32": float32.FEW,
    "bfloat16": float32.FEW,
    "float16": float32.FEW,
    "int8": int8_tiles.FEW,
    **dict.fromkeys(block_kinds.KINDS, block_rows.FEW),
}
# Each row of the input of GGUF's blocks is rounded to int8 once, with 1 term, or is a sum of two
# such rows, which is nearly exact: 15 bits instead of 8. Two cost little time where memory is
# slower than the product. Without the second, a quarter of the logits' error comes from the last
# product. The environment variable LLAMA2NP_TERMS=2 (or 1) is for all products.
TERMS = {"linear": 1, "experts": 1, "logits": 2}
if _terms := os.environ.get("LLAMA2NP_TERMS"):
    if _terms not in ("1", "2"):
        raise ValueError(f"LLAMA2NP_TERMS={_terms}: expected 1 or 2")
    TERMS = dict.fromkeys(TERMS, int(_terms))
# Row counts between two of these bounds use the same table.
_BOUNDS = sorted({1, *FEW.values()})

# The cost of one value of a row, roughly in multiply-adds. Only costly steps use several threads.
_COST = {
    "add": 1,
    "add_bias": 1,
    "embed": 1,
    "pick": 1,
    "scale": 1,
    "choose": 8,
    "gather": 1,
    "combine": 2,
    "rmsnorm": 4,
    "layernorm": 6,
    "rope": 4,
    "append": 4,
    "quantize": 8,
    "swiglu": 16,
    "gelu": 16,
    "geglu": 16,
    "tanh": 32,
    "softcap": 32,
    "angles": 32,
}


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


def row_class(count: int) -> int:
    """The class of a row count. Counts of the same class use the same table."""
    return sum(count > bound for bound in _BOUNDS)


@dataclass(slots=True, eq=False)
class Addresses:
    """A field of a table: the address of an array of the addresses of these arrays."""

    arrays: list[np.ndarray]


@dataclass(slots=True, eq=False)
class Entry:
    """A row of a table, before offsets in the arena are assigned: an op and its fields."""

    op: Op
    # A field is a number, an array (its address), a Value (its offset), or a list of up to MOST.
    fields: dict[str, Any]
    outputs: tuple[Value, ...]
    picked: bool = False
    # The k-th output may overwrite the k-th input, if it is not needed afterwards, but no other
    # input: the op still reads those when it has written a part of its output.
    in_place: bool = False


@dataclass(slots=True)
class Lowered:
    """All entries of a program for a class of rows."""

    entries: list[Entry] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # the first entry of each step, and the end


def lower(program: Program, count: int, wanted: int, chunk: int) -> Lowered:
    """The entries for `count` rows, of which `wanted` get logits. chunk: positions of a chunk."""
    made = Lowered()
    for step in program.steps:
        made.starts.append(len(made.entries))
        made.entries += _LOWER[step.op](
            program, step, wanted if step.op == "logits" else count, chunk
        )
    made.starts.append(len(made.entries))
    return made


def places(entries: list[Entry]) -> tuple[dict[Value, int], int]:
    """The offset of each value in the arena and the size of the arena, in float32 for one row.

    Memory is reused when its value is not needed any more.
    """
    last: dict[Value, int] = {}
    for i, entry in enumerate(entries):
        for value in _values(entry):
            last[value] = i
    found: dict[Value, int] = {}
    taken: list[tuple[int, int, Value]] = []  # start, end, value
    size = 0
    for i, entry in enumerate(entries):
        inputs = [v for v in _values(entry) if v not in entry.outputs]
        given = [v for v in inputs if v not in found]  # a value that is put there from outside
        for k, value in enumerate((*entry.outputs, *given)):
            if value in found:
                continue
            if value.name == "logits":
                found[value] = -value.width
                continue
            same = inputs[k] if entry.in_place and inputs[k:] and value not in given else None
            if (
                same
                and same in found
                and last[same] == i
                and same.width == value.width
                and inputs.count(same) == 1
            ):
                found[value] = found[same]
                taken = [(s, e, value if v is same else v) for s, e, v in taken]
                continue
            width, start = -(-value.width // 16) * 16, 0  # whole cache lines
            taken = sorted((part for part in taken if last[part[2]] >= i), key=lambda part: part[0])
            for begin, end, _ in taken:
                if start + width <= begin:
                    break
                start = max(start, end)
            found[value] = start
            taken.append((start, start + width, value))
            size = max(size, start + width)
    return found, size


def _values(entry: Entry) -> list[Value]:
    parts: list[Any] = []
    for part in entry.fields.values():
        parts += part if isinstance(part, list) else [part]
    return [part for part in parts if isinstance(part, Value)]


def _rows(op: Op, step: Step, n: int, cost: str, **fields: Any) -> Entry:
    """An entry of an op whose unit is a row."""
    fields = {"each": 1, "work": _COST[cost] * n, "n": n, **fields}
    return Entry(op, fields, step.outputs)


def _embed(program: Program, step: Step, count: int, chunk: int) -> list[Entry]:
    (name,), (out,) = step.weights["table"], step.outputs
    table: Matrix = program.weights[name]  # type: ignore[assignment]
    fields = {"out": out, "table": table.arrays[0], **step.numbers}
    if isinstance(table, Int8):
        extra = {"scales": table.scales, "group": table.group}
        return [_rows(rows.embed_int8, step, out.width, "embed", **fields, **extra)]
    if isinstance(table, Blocks):
        return [_rows(rows.embed_blocks(table.kind), step, out.width, "embed", **fields)]
    return [_rows(rows.embed_float(table.kind), step, out.width, "embed", **fields)]


def _norm(program: Program, step: Step, count: int, chunk: int) -> list[Entry]:
    (x,), (out,) = step.inputs.values(), step.outputs
    vectors = {kind: program.weights[names[0]] for kind, names in step.weights.items()}
    fields = {"x": x, "out": out, **step.numbers, **vectors}
    entry = _rows(getattr(rows, step.op), step, x.width, step.op, **fields)
    entry.in_place = True
    return [entry]


def _elementwise(program: Program, step: Step, count: int, chunk: int) -> list[Entry]:
    (out,) = step.outputs
    fields = {**step.inputs, "out": out, **step.numbers}
    entry = _rows(getattr(rows, step.op), step, out.width, step.op, **fields)
    entry.in_place = True
    return [entry]


def _angles(program: Program, step: Step, count: int, chunk: int) -> list[Entry]:
    cos, sin = step.outputs
    c, numbers = program.config, dict(step.numbers)
    local = bool(numbers.pop("local"))
    fields: dict[str, Any] = {"cos": cos, "sin": sin, **numbers}
    fields["magnitude"] = rope.magnitude(c, local)
    fixed = local or not rope.depends_on_length(c)
    fields["frequencies"] = rope.frequencies(c, local=local) if fixed else 0
    return [_rows(positions.angles, step, cos.width, "angles", **fields)]


def _rope(program: Program, step: Step, count: int, chunk: int) -> list[Entry]:
    *values, cos, sin = step.inputs.values()
    fields: dict[str, Any] = {"cos": cos, "sin": sin, **step.numbers}
    for name, value, out in zip("qk", values, step.outputs, strict=False):
        fields |= {name: value, f"{name}_out": out, f"{name}_width": out.width}
    width = sum(out.width for out in step.outputs)
    entry = _rows(positions.rope, step, width, "rope", **fields)
    entry.in_place = True
    return [entry]


def _attention(program: Program, step: Step, count: int, chunk: int) -> list[Entry]:
    (out,), inputs, n = step.outputs, dict(step.inputs), step.numbers
    k, v = inputs.pop("k"), inputs.pop("v")
    heads = {name: n[name] for name in ("n_kv_heads", "head_dim")}
    cache = {**heads, "layer": step.layer or 0, "chunk": chunk}
    append = _rows(attention.append, step, 2 * k.width, "append", k=k, v=v, **cache)
    append.outputs = ()
    fields = {**inputs, **n, **cache, "out": out, "units": n["n_heads"], "n": out.width}
    fields |= {"window": n["window"] or NO_LIMIT, "seen_work": 2 * out.width}
    return [append, Entry(attention.attend(bool(n["stride"])), fields, step.outputs)]


def _experts(program: Program, step: Step, count: int, chunk: int) -> list[Entry]:
    """Choose the experts of each row, put the rows of each expert next to each other, multiply
    them by its matrices, and add up what belongs to each row. `used` rows of a value with the width
    of all of them stand next to each other, too, so ops for rows serve both.
    """
    x, router = step.inputs.values()
    (out,), used = step.outputs, int(step.numbers["used"])
    gates, ups, downs = (
        [program.matrix(name) for name in step.weights[kind]]
        for kind in ("w_gate", "w_up", "w_down")
    )
    hidden, n_experts = gates[0].shape[0], len(gates)
    shares, places_, chosen = Value("", used), Value("", used), Value("", used)
    group, active = Value("", n_experts + 1), Value("", used + 1)
    grouped, gate, up, mlp, y = (
        Value("", used * width) for width in (x.width, hidden, hidden, hidden, out.width)
    )
    fields = {"router": router, "shares": shares, "chosen": chosen, **step.numbers}
    choose = _rows(experts.choose, step, n_experts, "choose", **fields)
    choose.outputs = (shares, chosen)
    fields = {"chosen": chosen, "places": places_, "starts": group, "active": active}
    fields |= {"used": used, "n_experts": n_experts, "units": 1, "work": used, "n": used}
    sort = Entry(experts.sort, fields, (places_, group, active))
    fields = {"x": x, "places": places_, "out": grouped, "used": used}
    gather = _rows(experts.gather, step, x.width, "gather", **fields)
    gather.outputs = (grouped,)
    lists = {"starts": group, "active": active}
    first = _expert_products(grouped, x.width, [gates, ups], [gate, up], lists, used, count)
    swiglu = _rows(rows.swiglu, step, mlp.width, "swiglu", gate=gate, up=up, out=mlp)
    swiglu.outputs, swiglu.in_place = (mlp,), True
    second = _expert_products(mlp, hidden, [downs], [y], lists, used, count)
    fields = {"y": y, "shares": shares, "places": places_, "out": out, "used": used}
    combine = _rows(experts.combine, step, out.width, "combine", **fields)
    return [choose, sort, gather, *first, swiglu, *second, combine]


def _expert_products(
    x: Value,
    n: int,
    matrices: list[list[Matrix]],
    outs: list[Value],
    lists: dict[str, Value],
    used: int,
    count: int,
) -> list[Entry]:
    """The entries for one or two matrices of each expert. x: `used` rows of n values per row."""
    kind, d, n_experts = matrices[0][0].kind, matrices[0][0].shape[0], len(matrices[0])
    fields: dict[str, Any] = {"n": n, "used": used, "d": d, "count": len(matrices), **lists}
    fields |= {"w": [Addresses([m.arrays[0] for m in some]) for some in matrices], "out": outs}
    before: list[Entry] = []
    if kind == "int8":
        group = matrices[0][0].group  # type: ignore[union-attr]
        before = [_quantize(x, group, False)]
        names = ("q", "q_scales", "q_sums")
        fields |= {"group": group} | {name: before[0].fields[name] for name in names}
        fields["scales"] = [Addresses([m.arrays[1] for m in some]) for some in matrices]
    elif kind in block_kinds.KINDS:
        before = [_quantize_for_blocks(x, n, block_kinds.KINDS[kind], TERMS["experts"])]
        for name in ("group", "terms", *("q" + part for part in _BLOCK_INPUT)):
            fields[name] = before[0].fields[name]
    else:
        fields["x"] = x
    block = experts.ROWS
    # One row uses exactly `used` experts; several rows may use all of them.
    fields["units"] = (used if count == 1 else n_experts) * len(matrices) * -(-d // block)
    fields["work"] = used * len(matrices) * d * n
    return [*before, Entry(experts.product(kind), fields, tuple(outs))]


def _linear(program: Program, step: Step, count: int, chunk: int) -> list[Entry]:
    (x,) = step.inputs.values()
    matrices, outs = program.matrices(step), list(step.outputs)
    entries = []
    for some in _of_one_kind(matrices):
        some_outs = [outs[i] for i in some]
        entries += _products(x, [matrices[i] for i in some], some_outs, count, TERMS[step.op])
    for name, out in zip(step.weights.get("bias", ()), outs, strict=False):
        if name:
            fields = {"x": out, "out": out, "bias": program.weights[name]}
            entries.append(_rows(rows.add_bias, step, out.width, "add_bias", **fields))
            entries[-1].outputs = ()
    return entries


def _logits(program: Program, step: Step, count: int, chunk: int) -> list[Entry]:
    """First copy the rows that need logits next to each other; for one row, no copy is needed."""
    (x,) = step.inputs.values()
    picked = Value("", x.width)
    first = _rows(rows.pick, step, x.width, "pick", x=x, out=picked)
    first.outputs = (picked,)
    inner = Step(step.op, {"x": picked}, step.weights, step.outputs, step.layer, step.numbers)
    entries = [first, *_linear(program, inner, count, chunk)]
    if cap := step.numbers["softcap"]:
        (out,) = step.outputs
        fields = {"x": out, "out": out, "softcap": cap}
        entries.append(_rows(rows.softcap, step, out.width, "softcap", **fields))
        entries[-1].outputs = ()
    for entry in entries:
        entry.picked = True
    return entries


def _of_one_kind(matrices: list[Matrix]) -> list[list[int]]:
    """Groups of adjacent matrices for one entry: of the same number format, at most MOST."""
    groups: list[list[int]] = []
    for i, matrix in enumerate(matrices):
        kind = matrix.kind, getattr(matrix, "group", 0)
        before = groups and matrices[groups[-1][0]]
        same = before and (before.kind, getattr(before, "group", 0)) == kind
        if not same or len(groups[-1]) == MOST:
            groups.append([])
        groups[-1].append(i)
    return groups


def _products(
    x: Value, matrices: list[Matrix], outs: list[Value], count: int, terms: int
) -> list[Entry]:
    """The entries for matrices of one number format with the input x; terms: see TERMS."""
    kind, least = matrices[0].kind, min(matrix.shape[0] for matrix in matrices)
    many = count > FEW[kind] and not PLAIN
    fields: dict[str, Any] = {
        "n": x.width,
        "count": len(matrices),
        "w": [matrix.arrays[0] for matrix in matrices],
        "d": [matrix.shape[0] for matrix in matrices],
        "out": outs,
    }
    before: list[Entry] = []
    if isinstance(matrices[0], Int8):
        group = matrices[0].group
        many = many and linear.int8_many is not None and group % 4 == 0 and least >= int8_tiles.ROWS
        op, block = (linear.int8_many, int8_tiles.ROWS) if many else (linear.int8_few, 1)
        fields |= {"scales": [matrix.arrays[1] for matrix in matrices], "group": group}
        prepared = _quantize(x, group, many)
        before = [prepared]
        names = ("tiles", "tiles_scales", "tiles_sums") if many else ("q", "q_scales", "q_sums")
        fields |= {name: prepared.fields[name] for name in names}
    elif isinstance(matrices[0], Blocks):
        many = many and least >= block_tiles.ROWS and block_tiles.fits(x.width)
        op = linear.blocks_many(kind) if many else linear.blocks_few(kind)
        block = block_tiles.ROWS if many else 1
        prepared = _quantize_for_blocks(x, x.width, block_kinds.KINDS[kind], terms, many)
        before = [prepared]
        form = "tiles" if many else "q"
        for name in ("group", "terms", *(form + part for part in _BLOCK_INPUT)):
            fields[name] = prepared.fields[name]
    else:
        many = many and least >= float32.ROWS
        op = linear.float_many(kind) if many else linear.float_few(kind)
        block, fields["x"] = float32.ROWS if many else 1, x
    fields["units"] = sum(-(-matrix.shape[0] // block) for matrix in matrices)
    fields["work"] = sum(matrix.shape[0] for matrix in matrices) * x.width
    return [*before, Entry(op, fields, tuple(outs))]


def _quantize(x: Value, group: int, many: bool) -> Entry:
    """The entry that quantizes x to int8, packed into tiles for many rows."""
    n, groups = x.width, x.width // group
    names, widths = ["q", "q_scales", "q_sums"], [-(-n // 4), groups, groups]
    if many:
        names, widths = [*names, "tiles", "tiles_scales", "tiles_sums"], 2 * widths
    made = tuple(Value("", width) for width in widths)
    each, op = (int8_tiles.NARROW, linear.quantize_tiles) if many else (1, linear.quantize)
    fields = {"x": x, "group": group, **dict(zip(names, made, strict=True))}
    fields |= {"n": n, "each": each, "work": _COST["quantize"] * n}
    return Entry(op, fields, made)


def _nothing(program: Program, step: Step, count: int, chunk: int) -> list[Entry]:
    return []  # an input is put into the arena from outside


_BLOCK_INPUT = ("", "_scales", "_sums", "_offsets")  # the names of its arrays, after "q", "tiles"


def _quantize_for_blocks(
    x: Value, n: int, kind: block_kinds.Kind, terms: int, many: bool = False
) -> Entry:
    """The entry that quantizes x for matrices in GGUF's blocks, packed into tiles for many rows.

    n: the columns of the matrix. A row of x may have several rows of n values.
    """
    width, parts = n if many else block_rows.padded_width(n), x.width // n
    widths = [terms * parts * part for part in (width // 4, *3 * [width // kind.group])]
    names = ["q" + part for part in _BLOCK_INPUT]
    op, each = linear.quantize_for_blocks, 1
    if many:
        names, widths = names + ["tiles" + part for part in _BLOCK_INPUT], 2 * widths
        op, each = linear.quantize_block_tiles, int8_tiles.NARROW // terms
    made = tuple(Value("", width) for width in widths)
    fields = {"x": x, "group": kind.group, "terms": terms, **dict(zip(names, made, strict=True))}
    fields |= {"n": n, "each": each, "work": terms * _COST["quantize"] * x.width}
    fields |= {} if many else {"parts": parts}
    return Entry(op, fields, made)


_Lower = Callable[[Program, Step, int, int], list[Entry]]
_LOWER: dict[str, _Lower] = {
    "input": _nothing,
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
    "add": _elementwise,
    "logits": _logits,
}
