"""The compiled engine: a program as tables of numbers, which the interpreter executes.

Only this module writes addresses into tables: after the program has checked all shapes, and never
from numbers in a file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from llama2np.aligned import aligned_zeros
from llama2np.kernels.entries import Addresses, Entry, places
from llama2np.kernels.interpreter import go
from llama2np.kernels.lower import lower
from llama2np.kernels.matmul.int8_tiles import NARROW
from llama2np.kernels.ops import bandwidth
from llama2np.kernels.ops.attention import TOGETHER
from llama2np.kernels.ops.sampling import sample
from llama2np.kernels.products import row_class
from llama2np.kernels.runtime import compiler
from llama2np.kernels.runtime.op import RUN, SPAN, STEP_BYTES
from llama2np.kernels.runtime.pool import POOL
from llama2np.kernels.runtime.shared import serve
from llama2np.model import rope
from llama2np.model.block import IDS
from llama2np.model.engine import ACTIVATIONS
from llama2np.model.program import Program, Value
from llama2np.model.state import State

TYPES = IDS.index("types")


class Table:
    """The interpreter's table for a class of row counts: a record for each entry (entries.py).

    count: rows of activations, of which `wanted` get logits. chunk: positions of a chunk of the KV
    cache.
    """

    def __init__(self, program: Program, count: int, wanted: int, chunk: int, activations: str):
        lowered = lower(program, count, wanted, chunk, activations)
        self.starts = lowered.starts
        if count == 1 and program.has_logits:  # the only row gets them: no copy is needed
            _skip_pick(lowered.entries, self.starts)
        self.places, self.width = places(lowered.entries, lowered.outside)
        self.rows = aligned_zeros((len(lowered.entries), STEP_BYTES), np.uint8)  # the records
        self.alive: list[np.ndarray] = []  # arrays whose addresses are in the table
        for row, entry in zip(self.rows, lowered.entries, strict=True):
            self._fill(row, entry)
        self.address = self.rows.ctypes.data

    def _fill(self, row: np.ndarray, entry: Entry) -> None:
        record = row[: entry.op.dtype.itemsize].view(entry.op.dtype)
        numbers = {"op": entry.op.address, "picked": entry.picked}
        for name, part in entry.fields.items():
            if isinstance(part, list):
                record[name][0, : len(part)] = [self._number(each) for each in part]
                numbers[name] = record[name][0]
            else:
                numbers[name] = self._number(part)
        # All at once: to assign one field takes as long.
        record[0] = tuple(numbers.pop(name, 0) for name in record.dtype.names or ())
        if numbers:
            raise TypeError(f"{entry.op.name} has no fields {', '.join(numbers)}")

    def _number(self, part: Any) -> Any:
        if isinstance(part, (int, float)):  # most of them
            return part
        if isinstance(part, Value):
            return self.places[part]
        if isinstance(part, np.ndarray):
            self.alive.append(part)
            return part.ctypes.data
        if isinstance(part, Addresses):
            self.alive += part.arrays
            return self._number(np.array([array.ctypes.data for array in part.arrays], np.int64))
        return part


def _skip_pick(entries: list[Entry], starts: list[int]) -> None:
    """Remove `pick`: the entries after it read its input instead."""
    at = starts[-2]
    pick = entries.pop(at)
    for entry in entries[at:]:
        entry.fields = {
            name: pick.fields["x"] if part is pick.fields["out"] else part
            for name, part in entry.fields.items()
        }
    starts[-1] -= 1


def row_sums(rows: np.ndarray, out: np.ndarray) -> None:
    """out[i] = the sum of row i, with all threads. rows: (n, width), out: (n,) float32."""
    record, run = np.zeros(1, bandwidth.row_sums.dtype), np.zeros(1, RUN)
    record["op"], record["units"] = bandwidth.row_sums.address, len(rows)
    record["n"] = rows.shape[1]
    record["x"], record["out"], record["work"] = rows.ctypes.data, out.ctypes.data, rows.size
    run["rows"] = 1
    nothing = np.zeros(0, np.int64), np.zeros((0, 0), np.float32), 0, 1, 0
    POOL.run(go, rows.size, record.ctypes.data, 1, run.ctypes.data, *nothing)


def kernels_of(
    program: Program, count: int, wanted: int, chunk: int, activations: str = ACTIVATIONS[0]
) -> list[Any]:
    """The kernels that execute the Table of these arguments, for compiler.prepare."""
    entries = lower(program, count, wanted, chunk, activations).entries
    return [go, serve, sample, *(entry.op.function for entry in entries)]


class CompiledEngine:
    """Computes a Program's steps with compiled code. See model/engine.py."""

    def __init__(self, program: Program, activations: str = ACTIVATIONS[0]):
        self.program, self._activations = program, activations
        self._tables: dict[tuple[int, int, int], Table] = {}
        self.takes_types = any(step.numbers.get("of") == TYPES for step in program.steps)

    def table(self, count: int, wanted: int, chunk: int) -> Table:
        """The table for `count` rows (see Table); it is made when it is first needed."""
        key = row_class(count), row_class(wanted), chunk
        if key not in self._tables:
            self._prepare(count, wanted, chunk)
            self._tables[key] = Table(self.program, count, wanted, chunk, self._activations)
        return self._tables[key]

    def _prepare(self, count: int, wanted: int, chunk: int) -> None:
        """Compile what this table needs; and that of a single row, which will probably follow."""
        counts = (count, wanted), (1, 1)
        compiler.prepare(
            kernel
            for rows, outputs in counts
            for kernel in kernels_of(self.program, rows, outputs, chunk, self._activations)
        )

    def run(
        self,
        tokens: np.ndarray,
        states: list[State],
        counts: list[int],
        logits: np.ndarray,
        picked: np.ndarray | None = None,
        laps: int = 1,
        types: np.ndarray | None = None,
        positions: np.ndarray | None = None,
    ) -> CompiledRun:
        """Prepare a pass: see Engine.run. For a single row, the State keeps the run for reuse."""
        rows, wanted = len(tokens) // laps, len(logits) // laps
        run = states[0].run if rows == 1 else None
        if run is None or run.engine is not self:
            run = CompiledRun(self, states, counts, rows, wanted, picked)
            if rows == 1:
                states[0].run = run
        run.start(states, tokens, logits, laps, wanted)
        if types is not None or positions is not None:
            run.set_ids(types, positions)
        return run


class CompiledRun:
    """One pass of a number of rows, and all memory that it needs."""

    def __init__(
        self,
        engine: CompiledEngine,
        states: list[State],
        counts: list[int],
        rows: int,
        wanted: int,
        picked: np.ndarray | None,
    ):
        # No State: the State of a single row keeps this run, and a cycle would keep its memory.
        self.engine, self.counts = engine, counts
        self._chunks = [state.chunks for state in states]  # the addresses are in use
        self.table = engine.table(rows, wanted or 1, states[0].chunk)
        program = engine.program
        c = program.config
        row_capacity = 1 if rows == 1 else -(-rows // NARROW) * NARROW
        capacity = max(state.capacity for state in states)
        self.arena = aligned_zeros((row_capacity * self.table.width,))
        self.scores = aligned_zeros((c.n_heads * TOGETHER, capacity))
        self.picked = np.arange(rows - wanted, rows) if picked is None else picked
        self.spans = np.zeros(len(states), SPAN)
        self.spans["rows"], self.spans["first"] = counts, np.cumsum(counts) - counts
        self.addresses = [state.addresses for state in states]
        self.spans["chunks"] = [addresses.ctypes.data for addresses in self.addresses]
        self._record = np.zeros(1, RUN)
        self.fields = self._record[0]
        f = self.fields
        f["rows"], f["row_capacity"], f["arena"] = rows, row_capacity, self.arena.ctypes.data
        f["scores"], f["capacity"] = self.scores.ctypes.data, capacity
        f["spans"], f["n_spans"] = self.spans.ctypes.data, len(states)
        f["picked"], f["choices"] = self.picked.ctypes.data, c.n_outputs
        self._address = self._record.ctypes.data
        self._positions = self.spans["pos"]  # a view
        self._work = program.work * rows
        self._by_length = rope.depends_on_length(c)
        self.exchanges: list[Callable[[], None]] = []
        if engine.takes_types:
            self.set_ids(np.zeros(rows, np.int64), None)

    def start(
        self,
        states: list[State],
        tokens: np.ndarray,
        logits: np.ndarray,
        laps: int,
        wanted: int,
    ) -> None:
        """Set the fields that differ between passes. states: those that the run was made for."""
        seen = 0
        for i, (state, count) in enumerate(zip(states, self.counts, strict=True)):
            self._positions[i] = state.pos
            seen += count * (state.pos + count)
        if self._by_length:
            self._set_turns(states)
        self.logits, self._arguments = logits, (self._address, tokens, logits, wanted, laps, seen)
        # Without wanted logits, the last step is skipped.
        skipped = not wanted and self.engine.program.has_logits
        self._end = self.table.starts[-2 if skipped else -1]

    def _set_turns(self, states: list[State]) -> None:
        """Set the values of the rotation that depend on the length of each sequence."""
        c = self.engine.program.config
        turns = [rope.frequencies(c, state.end) for state in states]
        self.spans["frequencies"] = [each.ctypes.data for each in turns]
        if c.dual_chunk:
            self.spans["scores_factor"] = [
                rope.scores_factor(c.dual_chunk, state.end) for state in states
            ]
        self._turns = turns  # the addresses are in use

    def set_ids(self, types: np.ndarray | None, positions: np.ndarray | None) -> None:
        """Set the token types and the learned positions, each (rows,) int64."""
        self._ids = types, positions  # the addresses are in use
        for name, ids in (("types", types), ("positions", positions)):
            if ids is not None:
                self.fields[name] = ids.ctypes.data

    def go(self, start: int = 0, stop: int | None = None) -> None:
        """Compute the steps start ... stop - 1 of the program; None means to the end."""
        first = self.table.starts[start] if start else 0
        end = self._end if stop is None else min(self.table.starts[stop], self._end)
        if first < end:
            table = self.table.address + first * STEP_BYTES
            POOL.run(go, self._work, table, end - first, *self._arguments)

    def array(self, value: Value) -> np.ndarray:
        """The output of a step that was just computed: (rows, width)."""
        place, f = self.table.places[value], self.fields
        if place < 0:
            return self.logits
        start, rows = place * int(f["row_capacity"]), int(f["rows"])
        return self.arena[start : start + rows * value.width].reshape(rows, value.width)

    def put(self, value: Value, array: np.ndarray) -> None:
        """Set a value as if its step had been computed: (rows, width)."""
        self.array(value)[:] = array

    def room(self, value: Value) -> np.ndarray:
        """Memory for a value that is filled elsewhere: (rows, width)."""
        return self.array(value)
