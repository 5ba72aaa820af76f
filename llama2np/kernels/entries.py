"""The rows of a table before they have addresses: ops with their fields, and places for values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llama2np.kernels.runtime.op import Op
from llama2np.model.program import Step, Value

# The cost of one value of a row, roughly in multiply-adds. Only costly steps use several threads.
COST = {
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


@dataclass(slots=True, eq=False)
class Addresses:
    """A field of a table: the address of an array of the addresses of these arrays."""

    arrays: list[np.ndarray]


@dataclass(slots=True, eq=False)
class Entry:
    """A row of a table, before offsets in the arena are assigned: an op and its fields.

    lower.py makes one or more entries of each step; engine.py makes a record of each entry.
    """

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
    # The steps without entries, whose outputs are put there: before which entry, and the step.
    outside: list[tuple[int, Step]] = field(default_factory=list)


def places(
    entries: list[Entry], outside: Sequence[tuple[int, Step]] = ()
) -> tuple[dict[Value, int], int]:
    """The offset of each value in the arena and the size of the arena, in float32 for one row.

    Memory is reused when its value is not needed any more. outside: see Lowered.
    """
    values = [_values(entry) for entry in entries]
    last = {value: i for i, some in enumerate(values) for value in some}
    put: dict[int, list[Value]] = {}
    for i, step in outside:
        put.setdefault(i, []).extend(step.outputs)
        for value in (*step.inputs.values(), *step.outputs):
            last[value] = max(last.get(value, i), i)
    found: dict[Value, int] = {}
    taken: list[tuple[int, int, Value]] = []  # start, end, value
    size = 0
    for i, entry in enumerate(entries):
        inputs = [v for v in values[i] if v not in entry.outputs]
        given = put.get(i, [])
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
    found: list[Value] = []
    for part in entry.fields.values():
        if isinstance(part, Value):
            found.append(part)
        elif isinstance(part, list):
            found += [each for each in part if isinstance(each, Value)]
    return found


def row_entry(op: Op, step: Step, n: int, cost: str, **fields: Any) -> Entry:
    """An entry of an op whose unit is a row."""
    fields = {"each": 1, "work": COST[cost] * n, "n": n, **fields}
    return Entry(op, fields, step.outputs)
