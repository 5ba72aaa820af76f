"""Calls one op of the compiled engine: a table of a single step, by the interpreter itself."""

import numpy as np

from llama2np.aligned import aligned_zeros
from llama2np.kernels.interpreter import go
from llama2np.kernels.matmul.block_kinds import KINDS
from llama2np.kernels.runtime.op import RUN, SPAN, STEP_BYTES
from llama2np.kernels.runtime.pool import POOL
from llama2np.model.gguf_blocks import Blocks


class Buffer:
    """A place in the arena for rows (T, width) of float32, or of four times as many int8."""

    def __init__(self, rows):
        self.rows = np.array(rows, order="C")  # a copy


def out(rows, width):
    """A buffer that is to be filled; what is not written stays nan."""
    return Buffer(np.full((rows, width), np.nan, np.float32))


def random_blocks(kind, d, n, seed=0, size=1):
    """A matrix in blocks: any bits, but scales that are numbers of about `size`."""
    form, rng = KINDS[kind], np.random.default_rng(seed)
    data = rng.integers(0, 256, (d, n // form.values, form.nbytes), np.uint8)
    for byte in (form.scale, form.offset):
        if byte is not None:
            scales = rng.standard_normal((d, n // form.values, 1)) * size
            data[..., byte : byte + 2] = scales.astype(np.float16).view(np.uint8)
    return Blocks(data.reshape(d, -1), kind)


def call(
    op,
    rows,
    states=(),
    counts=(),
    units=0,
    each=1,
    work=1,
    seen_work=0,
    members=1,
    tokens=None,
    **fields,
):
    """Compute all units of an op for `rows` rows.

    A field is a number, a Buffer, an array (its address), or a list of these. Buffers are read from
    and written to. states, counts: for ops on sequences; the rows of each. tokens: (rows,) int64.
    """
    flat = [x for f in fields.values() for x in (f if isinstance(f, list) else [f])]
    buffers = [x for x in flat if isinstance(x, Buffer)]
    room = max([rows, *(len(buffer.rows) for buffer in buffers)])
    sizes = [-(-buffer.rows.nbytes // (4 * len(buffer.rows))) for buffer in buffers]  # per row
    places = dict(zip(map(id, buffers), np.cumsum([0, *sizes]), strict=False))
    arena = aligned_zeros((room * sum(sizes) + 64,))

    def view(buffer):
        start = int(places[id(buffer)]) * room
        memory = arena[start:].view(buffer.rows.dtype)
        return memory[: buffer.rows.size].reshape(buffer.rows.shape)

    def number(part):
        if isinstance(part, Buffer):
            return places[id(part)]
        return part.ctypes.data if isinstance(part, np.ndarray) else part

    for buffer in buffers:
        view(buffer)[:] = buffer.rows
    table = aligned_zeros((STEP_BYTES,), np.uint8)
    record = table[: op.dtype.itemsize].view(op.dtype)[0]
    numbers = {"units": units, "each": each, "work": work, "seen_work": seen_work}
    for name, part in {"op": op.address, **numbers, **fields}.items():
        if isinstance(part, list):
            record[name][: len(part)] = [number(one) for one in part]
        else:
            record[name] = number(part)
    run, spans = np.zeros(1, RUN), np.zeros(max(len(states), 1), SPAN)
    run["rows"], run["row_capacity"] = rows, room
    run["arena"], run["spans"], run["n_spans"] = arena.ctypes.data, spans.ctypes.data, len(states)
    for i, state in enumerate(states):
        first = sum(counts[:i])
        spans[i] = first, counts[i], state.pos, state.addresses.ctypes.data, 0, 1
    capacity = max([state.capacity for state in states], default=1)
    scores = aligned_zeros((8 * int(fields.get("n_heads", 1)), capacity))
    run["scores"], run["capacity"] = scores.ctypes.data, capacity
    board = np.zeros(48, np.int64)
    tokens = np.zeros(rows, np.int64) if tokens is None else tokens
    pass_ = tokens, np.zeros((0, 0), np.float32), rows, 1, 0
    pool = board.ctypes.data, members, POOL.own_scratch()
    go(*pool, table.ctypes.data, 1, run.ctypes.data, *pass_)
    for buffer in buffers:
        buffer.rows[:] = view(buffer)
