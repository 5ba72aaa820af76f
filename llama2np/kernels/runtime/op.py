"""Ops: compiled functions whose addresses are in a table of steps.

A step in a table is a record: the fields of every step (HEADER), then the fields of its op. A step
of a Program may need several records. An op is declared once, with the names of its fields;
engine.py and the compiled code use these names.
"""

import numba
import numpy as np

from llama2np.kernels.runtime import shared
from llama2np.kernels.runtime.jit import inner, separate
from llama2np.kernels.runtime.link import LINKED, address_of
from llama2np.kernels.runtime.memory import array_at, floats
from llama2np.kernels.runtime.shared import STEP_KINDS

# The fields of a step that the interpreter reads.
HEADER = [
    ("op", "i8"),  # the address of the op
    ("picked", "i8"),  # 1 if the op works only on the rows that get logits; 0 if on all rows
    ("units", "i8"),  # the number of units that threads can share; 0 means one for each `each` rows
    ("each", "i8"),  # rows of a unit, if `units` is 0
    ("work", "i8"),  # multiply-adds for a row
    ("seen_work", "i8"),  # additional multiply-adds for each position that a row attends to
    ("n", "i8"),  # the width of a row of the op's input
]
STEP_BYTES = 384
MOST = 4  # the maximum number of matrices in one step
SCRATCH = 2**20  # bytes of scratch memory for each thread

# The fields of one run of a table: its rows, and the addresses of its arrays.
RUN = np.dtype(
    [
        ("rows", "i8"),  # rows of activations
        ("wanted", "i8"),  # rows that get logits
        ("row_capacity", "i8"),  # rows of each buffer in the arena
        ("arena", "i8"),  # an address, like the next seven
        ("tokens", "i8"),  # int64, lap after lap
        ("types", "i8"),  # (rows,) int64: the token types of an encoder
        ("positions", "i8"),  # (rows,) int64: for learned positions; 0 means as the spans say
        ("logits", "i8"),  # float32, lap after lap
        ("picked", "i8"),  # (wanted,) int64: the rows that get logits
        ("spans", "i8"),  # SPANs
        ("scores", "i8"),  # (n_heads * attention.TOGETHER, capacity) float32: scratch
        ("capacity", "i8"),  # positions in a row of `scores`
        ("n_spans", "i8"),
        ("lap", "i8"),  # the table may be executed several times, for one more token each time
        ("choices", "i8"),  # the next lap reads the most probable of tokens 0 ... choices - 1
    ],
    align=True,
)

# Consecutive rows of one sequence, and the KV cache of that sequence.
SPAN = np.dtype(
    [
        ("first", "i8"),  # row
        ("rows", "i8"),
        ("pos", "i8"),  # position of the first row
        ("chunks", "i8"),  # the address of an array (int64) of the addresses of the cache's chunks
        ("frequencies", "i8"),  # the address of rotary frequencies that depend on its length
        ("scores_factor", "f8"),  # of dual chunk attention
    ],
    align=True,
)


@inner
def run_at(address):
    """The RUN at an address."""
    return array_at(address, (1,), RUN)[0]


@inner
def span_at(run, k, first, last):
    """(start, stop, pos, chunks) of the k-th SPAN.

    Of the rows first ... last - 1, start ... stop - 1 belong to it. Row t is at position pos + t.
    chunks is the address of the array of addresses of its cache's chunks.
    """
    span = array_at(run["spans"], (run["n_spans"],), SPAN)[k]
    start, stop = max(first, span["first"]), min(last, span["first"] + span["rows"])
    return start, stop, span["pos"] + run["lap"] - span["first"], span["chunks"]


@inner
def turns_at(run, k):
    """(the address of the frequencies, the factor of the scores) of the k-th SPAN."""
    span = array_at(run["spans"], (run["n_spans"],), SPAN)[k]
    return span["frequencies"], span["scores_factor"]


@inner
def row_count(picked, run):
    """The number of rows of a step: those that get logits, or all."""
    return run["wanted"] if picked else run["rows"]


@inner
def place(run, offset):
    """The address of a buffer. A negative offset means the logits, with -offset values per row."""
    if offset < 0:
        return run["logits"] - 4 * offset * run["lap"] * run["wanted"]
    return run["arena"] + 4 * offset * run["row_capacity"]


@inner
def rows_of(run, offset, n, first, last):
    """Rows first ... last - 1 of a buffer of width n: (last - first, n) float32."""
    return floats(place(run, offset) + 4 * n * first, last - first, n)


class Op:
    """A compiled function for tables: (step, run, first, last, scratch) computes these units.

    `address` compiles or loads it when a network first uses it.
    """

    def __init__(self, function, fields):
        self.dtype = np.dtype([*HEADER, *fields], align=True)
        assert self.dtype.itemsize <= STEP_BYTES, function
        record, body = self.dtype, inner(function, forceinline=True)

        def entry(row, run, first, last, scratch):
            body(array_at(row, (1,), record)[0], run_at(run), first, last, scratch)

        entry.__qualname__ = entry.__name__ = function.__name__
        entry.__module__ = function.__module__
        self.name = function.__name__
        self.function = separate(entry)
        self._address = None
        if not numba.config.DISABLE_JIT:
            LINKED[self.function] = STEP_KINDS

    @property
    def address(self):
        """The address of the machine code; without JIT the index of the op in OPS."""
        if self._address is None:
            self._address = self._find()
        return self._address

    def _find(self):
        if numba.config.DISABLE_JIT:
            shared.OPS.append(self.function)
            return len(shared.OPS) - 1
        return address_of(self.function, STEP_KINDS)


def op(fields):
    """Decorate an op. fields: their names; "eps:f4" is a float32, "w:4" is four int64."""

    def parse(field):
        name, _, kind = field.partition(":")
        return (name, "i8", (int(kind),)) if kind.isdigit() else (name, kind or "i8")

    return lambda function: Op(function, [parse(field) for field in fields.split()])
