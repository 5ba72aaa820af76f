"""A program as a table of text: the inputs, weights, outputs and cost of each step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from llama2np.model.program import Program, Step, Value, multiply_adds

_HEAD = ("#", "step", "layer", "reads", "weights", "makes", "width", "bytes", "multiply-adds")


def rows(program: Program, seconds: Sequence[float] | None = None) -> Iterator[tuple[str, ...]]:
    """The table's header, a row for each step, and the sums. seconds: the time of each step.

    Bytes are the weights that a step reads for one token; multiply-adds are counted for its
    matrices and one token.
    """
    yield (*_HEAD, "µs") if seconds is not None else _HEAD
    names = _names(program)
    for i, step in enumerate(program.steps):
        reads = " ".join(filter(None, (names[value] for value in step.inputs.values())))
        weights = _weights(step)
        makes = " ".join(names[value] for value in step.outputs)
        width = " ".join(str(value.width) for value in step.outputs)
        layer = "" if step.layer is None else str(step.layer)
        size, work = bytes_of(program, step), multiply_adds(program, step)
        row = (str(i), step.op, layer, reads, weights, makes, width, f"{size:,}", f"{work:,}")
        yield (*row, f"{seconds[i] * 1e6:,.1f}") if seconds is not None else row
    size = sum(bytes_of(program, step) for step in program.steps)
    row = ("", "all", "", "", "", "", "", f"{size:,}", f"{program.work:,}")
    yield (*row, f"{sum(seconds) * 1e6:,.1f}") if seconds is not None else row


def table(program: Program, seconds: Sequence[float] | None = None) -> str:
    """The rows as text with aligned columns; numbers are aligned right."""
    found = list(rows(program, seconds))
    widths = [max(len(row[i]) for row in found) for i in range(len(found[0]))]
    lines = []
    for row in found:
        cells = [
            text.rjust(width) if i == 0 or i >= 7 else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def bytes_of(program: Program, step: Step) -> int:
    """The bytes of weights that a step reads for one token.

    For an embedding this is one row; of the experts, only those that are used.
    """
    total = 0
    for kind, names in step.weights.items():
        for name in names:
            if name:
                tensor = program.weights[name]
                arrays = (tensor,) if isinstance(tensor, np.ndarray) else tensor.arrays
                size = sum(array.nbytes for array in arrays)
                total += size // tensor.shape[0] if kind == "table" else size
    if "used" in step.numbers:
        total = total * int(step.numbers["used"]) // len(next(iter(step.weights.values())))
    return total


def _weights(step: Step) -> str:
    """The names of a step's weights without their block; of the experts, the first and the last."""
    short = [
        (w.split(".", 2)[-1] if w.startswith("layers.") else w)
        for some in step.weights.values()
        for w in ((some[0], "...", some[-1]) if "used" in step.numbers else some)
        if w
    ]
    return " ".join(short)


def _names(program: Program) -> dict[Value, str]:
    """The name of each value; one without a name gets the name of its step."""
    names: dict[Value, str] = {}
    for step in program.steps:
        own = {"angles": ("cos", "sin")}.get(step.op, ())
        for i, value in enumerate(step.outputs):
            names[value] = value.name or (own[i] if own else step.op)
    return names
