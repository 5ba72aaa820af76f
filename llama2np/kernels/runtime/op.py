"""Ops: compiled functions that a table of steps names by their addresses.

A step of a table is a record: what every step has (HEADER), then the fields of its op, by name. An
op is declared once, with its fields; the table's maker and the compiled code both use these names.
"""

import numba
import numpy as np
from numba import carray

from llama2np.kernels.runtime import shared
from llama2np.kernels.runtime.jit import inner
from llama2np.kernels.runtime.link import LINKED, address_of
from llama2np.kernels.runtime.memory import floats, pointer
from llama2np.kernels.runtime.shared import STEP_KINDS

# What the interpreter reads of a step.
HEADER = [
    ("op", "i8"),  # the address of the op
    ("picked", "i8"),  # 1: the op works on the rows whose logits are wanted; 0: on all rows
    ("units", "i8"),  # how many units there are to share; 0: one for each `each` rows
    ("each", "i8"),
    ("work", "i8"),  # multiply-adds for a row
    ("seen_work", "i8"),  # and for each position that a row sees
    ("n", "i8"),  # the width of a row of the op's input
]
STEP_BYTES = 384
MOST = 4  # matrices in one step

# What is true of one run of a table: its rows, and where its arrays are.
RUN = np.dtype(
    [
        ("rows", "i8"),  # rows of activations
        ("wanted", "i8"),  # rows whose logits are wanted
        ("room", "i8"),  # rows that each buffer of the arena has room for
        ("arena", "i8"),  # addresses, from here on
        ("tokens", "i8"),  # int64, those of one lap after those of the other
        ("logits", "i8"),  # float32, likewise
        ("picked", "i8"),  # (wanted,) int64: the rows whose logits are wanted
        ("spans", "i8"),  # SPANs
        ("scores", "i8"),  # (n_heads * 8, capacity) float32: scratch of attention
        ("capacity", "i8"),  # positions that `scores` has room for
        ("n_spans", "i8"),
        ("lap", "i8"),  # the table is gone through several times, with one more token each time
        ("choices", "i8"),  # how many tokens, from 0 on, a next lap may choose from
    ],
    align=True,
)

# Rows of one sequence, one after the other, and the KV cache of that sequence.
SPAN = np.dtype(
    [
        ("first", "i8"),  # row
        ("rows", "i8"),
        ("pos", "i8"),  # position of the first row
        ("chunks", "i8"),  # address of the addresses (int64) of the cache's chunks
    ],
    align=True,
)


@inner
def run_at(address):
    """The RUN at an address."""
    return carray(pointer(address), (1,), RUN)[0]


@inner
def span_at(run, k, first, last):
    """Of the k-th SPAN: (start, stop, pos, chunks).

    The rows start ... stop - 1 are those of first ... last - 1 that belong to it, row t is at
    position pos + t, and chunks is the address of the addresses of its cache's chunks.
    """
    span = carray(pointer(run["spans"]), (run["n_spans"],), SPAN)[k]
    start, stop = max(first, span["first"]), min(last, span["first"] + span["rows"])
    return start, stop, span["pos"] + run["lap"] - span["first"], span["chunks"]


@inner
def row_count(picked, run):
    """How many rows a step works on: those whose logits are wanted, or all."""
    return run["wanted"] if picked else run["rows"]


@inner
def place(run, offset):
    """The address of a buffer. An offset below 0 means the logits: -offset values a row."""
    if offset < 0:
        return run["logits"] - 4 * offset * run["lap"] * run["wanted"]
    return run["arena"] + 4 * offset * run["room"]


@inner
def rows_of(run, offset, n, first, last):
    """Rows first ... last - 1 of a buffer of width n: (last - first, n) float32."""
    return floats(place(run, offset) + 4 * n * first, last - first, n)


class Op:
    """A compiled function for tables, (step, run, first, last, scratch): compute these units.

    `address` compiles or loads it when a network first uses it.
    """

    def __init__(self, function, fields):
        self.dtype = np.dtype([*HEADER, *fields], align=True)
        assert self.dtype.itemsize <= STEP_BYTES, function
        record, body = self.dtype, inner(function, forceinline=True)

        def entry(row, run, first, last, scratch):
            body(carray(pointer(row), (1,), record)[0], run_at(run), first, last, scratch)

        entry.__qualname__ = entry.__name__ = function.__name__
        entry.__module__ = function.__module__
        self.name = function.__name__
        self.function = inner(entry)
        self._address = None
        if not numba.config.DISABLE_JIT:
            LINKED[self.function] = STEP_KINDS

    @property
    def address(self):
        """The address of the machine code, or without JIT the op's number."""
        if self._address is None:
            self._address = self._find()
        return self._address

    def _find(self):
        if numba.config.DISABLE_JIT:
            shared.OPS.append(self.function)
            return len(shared.OPS) - 1
        return address_of(self.function, STEP_KINDS)


def op(fields):
    """The decorator of an op. fields: their names; "eps:f4" is a float32, "w:4" are four int64."""

    def parse(field):
        name, _, kind = field.partition(":")
        return (name, "i8", (int(kind),)) if kind.isdigit() else (name, kind or "i8")

    return lambda function: Op(function, [parse(field) for field in fields.split()])
