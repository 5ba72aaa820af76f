"""Which matrix product is used for how many rows: the entries of the linear steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama2np.kernels.entries import COST, Addresses, Entry
from llama2np.kernels.matmul import (
    block_kinds,
    block_panels,
    block_rows,
    block_tiles,
    float32,
    int8_tiles,
)
from llama2np.kernels.ops import experts, linear
from llama2np.kernels.runtime.jit import PLAIN
from llama2np.kernels.runtime.op import MOST
from llama2np.model.gguf_blocks import Blocks
from llama2np.model.program import Value
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
# product. By the names of model/engine.py and by steps: the number of terms.
TERMS: Mapping[str, Mapping[str, int]] = {
    "int8": {"linear": 1, "experts": 1, "logits": 2},
    "int8x2": {"linear": 2, "experts": 2, "logits": 2},
}
# Row counts between two of these bounds use the same table.
_BOUNDS = sorted({1, *FEW.values()})


def row_class(count: int) -> int:
    """The class of a row count. Counts of the same class use the same table."""
    return sum(count > bound for bound in _BOUNDS)


def of_one_kind(matrices: list[Matrix]) -> list[list[int]]:
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


def products(
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
        many = many and _in_tiles(least, x.width)
        op = linear.blocks_many(kind) if many else linear.blocks_few(kind)
        block = block_panels.ROWS if many else 1
        wide = block_tiles.WIDE if many else 0
        before = [_quantize_for_blocks(x, x.width, block_kinds.KINDS[kind], terms, wide)]
        form = "tiles" if many else "q"
        for name in ("group", "terms", *(form + part for part in _BLOCK_INPUT)):
            fields[name] = before[0].fields[name]
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
    fields |= {"n": n, "each": each, "work": COST["quantize"] * n}
    return Entry(op, fields, made)


_BLOCK_INPUT = ("", "_scales", "_sums", "_offsets")  # the names of its arrays, after "q", "tiles"


def _quantize_for_blocks(x: Value, n: int, kind: block_kinds.Kind, terms: int, wide: int) -> Entry:
    """The entry that quantizes x for matrices in GGUF's blocks.

    n: the columns of the matrix. A row of x may have several rows of n values. wide: if not 0, the
    input is also packed into tiles for many rows, of which the wide ones have so many.
    """
    width, parts = block_rows.padded_width(n), x.width // n
    widths = [terms * parts * part for part in (width // 4, *3 * [width // kind.group])]
    names = ["q" + part for part in _BLOCK_INPUT]
    op, each = linear.quantize_for_blocks, 1
    if wide:
        names, widths = names + ["tiles" + part for part in _BLOCK_INPUT], 2 * widths
        op, each = linear.quantize_block_tiles, int8_tiles.NARROW
    made = tuple(Value("", width) for width in widths)
    fields = {"x": x, "group": kind.group, "terms": terms, **dict(zip(names, made, strict=True))}
    fields |= {"n": n, "each": each, "work": terms * COST["quantize"] * x.width, "parts": parts}
    fields |= {"wide": wide} if wide else {}
    return Entry(op, fields, made)


def _in_tiles(d: int, n: int) -> bool:
    """Whether tiles can be used for a matrix (d, n) in GGUF's blocks."""
    return d >= block_panels.ROWS and block_tiles.fits(n)


def expert_products(
    x: Value,
    n: int,
    matrices: list[list[Matrix]],
    outs: list[Value],
    lists: dict[str, Value],
    terms: int,
    used: int,
    count: int,
) -> list[Entry]:
    """The entries for one or two matrices of each expert. x: `used` rows of n values per row."""
    kind, d, n_experts = matrices[0][0].kind, matrices[0][0].shape[0], len(matrices[0])
    fields: dict[str, Any] = {"n": n, "used": used, "d": d, "count": len(matrices), **lists}
    fields |= {"w": [Addresses([m.arrays[0] for m in some]) for some in matrices], "out": outs}
    before: list[Entry] = []
    op = experts.product(kind)
    if kind == "int8":
        group = matrices[0][0].group  # type: ignore[union-attr]
        before = [_quantize(x, group, False)]
        names = ("q", "q_scales", "q_sums")
        fields |= {"group": group} | {name: before[0].fields[name] for name in names}
        fields["scales"] = [Addresses([m.arrays[1] for m in some]) for some in matrices]
    elif kind in block_kinds.KINDS:
        many, forms = count > FEW[kind] and not PLAIN and _in_tiles(d, n), ["q"]
        if many:
            op, forms = experts.product(kind, many), ["q", "tiles"]
        wide = int8_tiles.NARROW if many else 0
        before = [_quantize_for_blocks(x, n, block_kinds.KINDS[kind], terms, wide)]
        for name in ("group", "terms", *(form + part for form in forms for part in _BLOCK_INPUT)):
            fields[name] = before[0].fields[name]
    else:
        fields["x"] = x
    block = experts.ROWS
    # One row uses exactly `used` experts; several rows may use all of them.
    fields["units"] = (used if count == 1 else n_experts) * len(matrices) * -(-d // block)
    fields["work"] = used * len(matrices) * d * n
    return [*before, Entry(op, fields, tuple(outs))]
