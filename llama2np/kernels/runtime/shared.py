"""Threads share the units of a step, in compiled code.

The board is an array of int64: counters that all threads of a pool share. The main thread publishes
a step there, divided into chunks. Every thread takes chunks until none is left, and the main thread
waits until all chunks that were taken are done. It never waits for a worker to start: if the
workers are late, or asleep, it computes everything itself. Only the thread that has taken a chunk
accesses the data of the step, so a late worker never accesses memory that has been freed.

One word of the board contains the number of the step, its number of chunks, and the next chunk. A
thread takes a chunk by a compare-and-swap of that word, which fails if anything has changed.

A step here is one record of the interpreter's table (op.py). The order of calls is: `go` in
interpreter.py calls `share` for a step that is large enough; `share` divides it and publishes it;
the main thread (in `share`) and the workers (in `serve`) call `_work` until no chunk is left; and
`_work` calls the op for the units of one chunk.
"""

import os
import platform
import time

import numba
import numpy as np
from llvmlite import ir
from numba import int64, types
from numba.core import cgutils
from numba.extending import intrinsic

from llama2np.kernels.runtime.jit import exact, inner
from llama2np.kernels.runtime.link import LINKED
from llama2np.kernels.runtime.memory import int64s
from llama2np.kernels.runtime.vectors import I32, I64, call

# Indices into the board. Words that different threads write are in different cache lines.
_WORD, _DONE = 0, 16
HELPED = 17  # the chunks that workers have computed
# Of the step: the address of its op, two arguments of it, its number of units, how many chunks are
# long (the first ones; all others are short), and the units of a long and of a short chunk.
_OP, _ROW, _RUN, _UNITS, _LONG_CHUNKS, _LONG_UNITS, _SHORT_UNITS = range(32, 39)
# For the call: whether it is in progress; the number of threads that share its steps now; how many
# nanoseconds the main thread has waited for workers without a processor, or UNHELPED.
RUNNING, MEMBERS, WAITED = 39, 40, 41
UNHELPED = -1  # nothing was waited for, but the workers computed almost nothing
_CHUNKS = 42  # the chunks of all steps that were shared since HELPED was set to 0
# The largest number of threads for the call, and how many of them it begins without.
CALL_MEMBERS, WITHHELD = 43, 44
BOARD = 48  # int64

_CHUNK_BITS = 10  # the word, from its highest bits: the number of the step, chunks, next chunk
_CHUNK_MASK, _STEP_MASK = 2**_CHUNK_BITS - 1, 2**42 - 1
MAX_MEMBERS = _CHUNK_MASK // 4

SMALL = 2**15  # multiply-adds; below this, the main thread alone is faster
_LARGE = 2**18  # multiply-adds; from here on, short chunks make up for their cost
_LONG_WAIT = 250_000  # nanoseconds; a longer wait means that a worker has no processor
_BRIEF = 2**6  # checks of the board, some microseconds; only longer waits are measured
_PATIENT = 2**12  # checks of the board, 100 to 200 microseconds; then a wait yields the processor
_ENOUGH_CHUNKS = 2**8  # chunks after which the main thread checks whether the workers helped
_HELP = 8  # workers that have computed less than an eighth of these chunks have no processor

_X86, _UNIX = platform.machine() in ("x86_64", "AMD64"), hasattr(os, "sched_yield")

STEP_KINDS = (int64,) * 5  # the arguments of an op: row, run, first, last, scratch

if numba.config.DISABLE_JIT:
    OPS = []  # without JIT, the address of an op is its index in this list

    def _load(board, place):
        return int(int64s(board, BOARD)[place])

    def _store(board, place, value):
        int64s(board, BOARD)[place] = value

    def _add(board, place, value):
        int64s(board, BOARD)[place] += value

    def _swap(board, place, expected, value):
        found = _load(board, place)
        if found == expected:
            _store(board, place, value)
        return found

    def _pause():
        pass

    _yield, _now = _pause, time.monotonic_ns

    def call_op(op, row, run, first, last, scratch):
        """Call the op at an address."""
        OPS[op](row, run, first, last, scratch)

else:

    def _atomic(operate, returns, count):
        """An intrinsic (board, place, ...) with `count` values. operate(builder, pointer, ...)."""

        def generate(context, builder, _signature, arguments):
            word = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
            found = operate(builder, builder.gep(word, [arguments[1]]), *arguments[2:])
            return found if returns is types.int64 else context.get_dummy_value()

        def kinds():
            return returns(int64, types.intp, *[int64] * count), generate

        functions = (
            lambda _context, board, place: kinds(),
            lambda _context, board, place, value: kinds(),
            lambda _context, board, place, expected, value: kinds(),
        )
        return intrinsic(functions[count])

    _load = _atomic(lambda b, at: b.load_atomic(at, "acquire", 8), types.int64, 0)
    _store = _atomic(lambda b, at, v: b.store_atomic(v, at, "release", 8), types.void, 1)
    _add = _atomic(lambda b, at, v: b.atomic_rmw("add", at, v, "acq_rel"), types.void, 1)
    _swap = _atomic(
        lambda b, at, old, new: b.extract_value(b.cmpxchg(at, old, new, "acq_rel", "acquire"), 0),
        types.int64,
        2,
    )

    def _instruction(name, result):
        """An intrinsic that calls a function of LLVM or of the C library, without arguments."""

        def generate(context, builder, _signature, _arguments):
            call(builder, name, result)
            return context.get_dummy_value()

        return intrinsic(lambda _context: (types.void(), generate))

    # PAUSE marks a spin-wait loop, so that it does not slow down the sibling hyper-thread.
    # sched_yield gives the processor to another thread; Windows has none, and PAUSE is used there.
    _pause = _instruction("llvm.x86.sse2.pause", ir.VoidType()) if _X86 else inner(lambda: None)
    _yield = _instruction("sched_yield", I32) if _UNIX else _pause

    @intrinsic
    def _clock(_context):
        """The time of the C library's monotonic clock, in nanoseconds."""

        def generate(_target, builder, _signature, _arguments):
            moment = cgutils.alloca_once(builder, ir.ArrayType(I64, 2))  # seconds, nanoseconds
            which = ir.Constant(I32, time.CLOCK_MONOTONIC)
            call(builder, "clock_gettime", I32, which, moment)
            seconds, rest = (builder.extract_value(builder.load(moment), k) for k in (0, 1))
            return builder.add(builder.mul(seconds, ir.Constant(I64, 10**9)), rest)

        return int64(), generate

    # Windows has no such function. There the clock is constant, and no wait counts as long.
    _now = _clock if _UNIX else inner(lambda: np.int64(0))

    @intrinsic
    def call_op(_context, op, row, run, first, last, scratch):
        """Call the op at an address with numba's calling convention; errors are passed on."""

        def generate(context, builder, _signature, arguments):
            convention = context.call_conv
            kind = convention.get_function_type(types.none, STEP_KINDS)
            there = builder.inttoptr(arguments[0], kind.as_pointer())
            status, _ = convention.call_function(
                builder, there, types.none, STEP_KINDS, arguments[1:]
            )
            with builder.if_then(status.is_error, likely=False):
                convention.return_status_propagate(builder, status)
            return context.get_dummy_value()

        return types.void(int64, *STEP_KINDS), generate


@inner
def _rest(looks):
    """As a worker without work, wait a little before the next check of the board.

    Every 64th time, and after 2**16 checks every time, it yields its processor.
    """
    if looks & 63 and looks < 2**16:
        _pause()
    else:
        _yield()


@inner
def _work(board, scratch):
    """Take a chunk of the current step and compute it; return whether there was one."""
    word = _load(board, _WORD)
    chunk = word & _CHUNK_MASK
    if chunk >= (word >> _CHUNK_BITS) & _CHUNK_MASK:
        return False
    if _swap(board, _WORD, word, word + 1) == word:
        s = int64s(board, BOARD)  # the step cannot change before this chunk is done
        # The chunks before this one: `longs` long and `shorts` short ones.
        longs = min(chunk, s[_LONG_CHUNKS])
        shorts = chunk - longs
        first = longs * s[_LONG_UNITS] + shorts * s[_SHORT_UNITS]
        size = s[_LONG_UNITS] if chunk < s[_LONG_CHUNKS] else s[_SHORT_UNITS]
        last = min(first + size, s[_UNITS])
        if first < last:  # false for the last chunks of a step with few units, which are empty
            call_op(s[_OP], s[_ROW], s[_RUN], first, last, scratch)
        _add(board, _DONE, 1)
    return True


@inner
def shares(board, units, work):
    """Whether threads share a step with this number of units and multiply-adds."""
    return units > 1 and work >= SMALL and int64s(board, BOARD)[MEMBERS] > 1


@inner
def share(board, op, row, run, units, work, scratch):
    """As the main thread, compute all units of a step together with the workers.

    op: its address; row, run, scratch: its arguments; work: multiply-adds. Each thread first gets
    one long contiguous chunk, because memory is read faster in that way. The last quarter of a
    large step is handed out dynamically in short chunks, so that a faster thread takes more of
    them. After a wait that is much longer than the work, the main thread computes alone, until a
    worker sets MEMBERS again (pool.py) or the call ends.
    """
    s = int64s(board, BOARD)
    members = s[MEMBERS]
    rest = units // 4 if work >= _LARGE else 0
    long, short = -(-(units - rest) // members), -(-units // (8 * members))
    chunks = members + max(-((members * long - units) // short), 0)  # at most 3 * members
    s[_OP], s[_ROW], s[_RUN], s[_UNITS] = op, row, run, units
    s[_LONG_CHUNKS], s[_LONG_UNITS], s[_SHORT_UNITS] = members, long, short
    _store(board, _DONE, 0)
    s[_CHUNKS] += chunks
    step = ((_load(board, _WORD) >> 2 * _CHUNK_BITS) + 1) & _STEP_MASK
    _store(board, _WORD, (step << 2 * _CHUNK_BITS) | (chunks << _CHUNK_BITS))
    while _work(board, scratch):
        pass
    looks, since = 0, np.int64(0)
    while _load(board, _DONE) < chunks:  # only for chunks that workers have taken
        looks += 1
        if looks == _BRIEF:
            since = _now()
        if looks < _PATIENT:  # to yield would give the processor away for milliseconds
            _pause()
        else:
            _yield()
    if looks > _BRIEF:
        waited = _now() - since
        # `work` as nanoseconds: even a slow processor computes a multiply-add in one.
        if waited > _LONG_WAIT + work:
            s[WAITED] += waited
            s[MEMBERS] = 1


@exact
def serve(board, member, scratch, idle_looks, busy_looks):
    """As a worker, compute chunks until there has been no work for a while.

    The limit is `busy_looks` checks of the board during a call that this worker takes part in, and
    `idle_looks` at other times.
    """
    looks = 0
    while True:
        takes_part = member < _load(board, MEMBERS)
        if looks >= (busy_looks if takes_part and _load(board, RUNNING) else idle_looks):
            break
        if takes_part and _work(board, scratch):
            _add(board, HELPED, 1)
            looks = 0
        else:
            looks += 1
            _rest(looks)


LINKED[serve] = (int64,) * 5


@inner
def begin_call(board, members):
    """As the main thread, publish that a call begins, with this number of threads."""
    s = int64s(board, BOARD)
    s[WAITED], s[CALL_MEMBERS] = 0, members
    _store(board, MEMBERS, members - s[WITHHELD])
    _store(board, RUNNING, 1)


@inner
def end_call(board):
    """As the main thread, publish that the call ends, and check whether the workers helped.

    On a busy machine a worker that waits for work yields its processor, and may get none when there
    is work. Then it takes no chunk, so nobody waits for it. But the system shares out the
    processors among more threads, and the main thread gets less. This is checked after
    _ENOUGH_CHUNKS chunks, which may be those of several calls.
    """
    _store(board, RUNNING, 0)
    s = int64s(board, BOARD)
    if s[_CHUNKS] >= _ENOUGH_CHUNKS:
        if not s[WAITED] and _HELP * _load(board, HELPED) < s[_CHUNKS]:
            s[WAITED] = UNHELPED
        s[_CHUNKS] = 0
        _store(board, HELPED, 0)
