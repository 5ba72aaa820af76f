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

import numba
import numpy as np
from numba import int64, types
from numba.extending import intrinsic

from llama2np.kernels.runtime.atomic import add, give_way, load, now, pause, store, swap
from llama2np.kernels.runtime.jit import exact, inner
from llama2np.kernels.runtime.link import LINKED
from llama2np.kernels.runtime.memory import int64s

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
MAX_MEMBERS = _CHUNK_MASK // 6

SMALL = 2**15  # multiply-adds; below this, the main thread alone is faster
_LARGE = 2**18  # multiply-adds; from here on, short chunks make up for their cost
_LONG_WAIT = 250_000  # nanoseconds; a longer wait means that a worker has no processor
_BRIEF = 2**6  # checks of the board, some microseconds; only longer waits are measured
_PATIENT = 2**12  # checks of the board, 100 to 200 microseconds; then a wait yields the processor
_ENOUGH_CHUNKS = 2**8  # chunks after which the main thread checks whether the workers helped
_HELP = 8  # workers that have computed less than an eighth of these chunks have no processor

STEP_KINDS = (int64,) * 5  # the arguments of an op: row, run, first, last, scratch

if numba.config.DISABLE_JIT:
    OPS = []  # without JIT, the address of an op is its index in this list

    def call_op(op, row, run, first, last, scratch):
        """Call the op at an address."""
        OPS[op](row, run, first, last, scratch)

else:

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
        pause()
    else:
        give_way()


@inner
def _work(board, scratch):
    """Take a chunk of the current step and compute it; return whether there was one."""
    word = load(board, _WORD)
    chunk = word & _CHUNK_MASK
    if chunk >= (word >> _CHUNK_BITS) & _CHUNK_MASK:
        return False
    if swap(board, _WORD, word, word + 1) == word:
        s = int64s(board, BOARD)  # the step cannot change before this chunk is done
        # The chunks before this one: `longs` long and `shorts` short ones.
        longs = min(chunk, s[_LONG_CHUNKS])
        shorts = chunk - longs
        first = longs * s[_LONG_UNITS] + shorts * s[_SHORT_UNITS]
        size = s[_LONG_UNITS] if chunk < s[_LONG_CHUNKS] else s[_SHORT_UNITS]
        last = min(first + size, s[_UNITS])
        if first < last:  # false for the last chunks of a step with few units, which are empty
            call_op(s[_OP], s[_ROW], s[_RUN], first, last, scratch)
        add(board, _DONE, 1)
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
    # A short chunk has at least SMALL multiply-adds, so that taking it costs little in comparison.
    short = max(-(-units // (16 * members)), -(-units * SMALL // work)) if rest else units
    long = -(-(units - rest) // members)
    chunks = members + max(-((members * long - units) // short), 0)  # at most 5 * members
    s[_OP], s[_ROW], s[_RUN], s[_UNITS] = op, row, run, units
    s[_LONG_CHUNKS], s[_LONG_UNITS], s[_SHORT_UNITS] = members, long, short
    store(board, _DONE, 0)
    s[_CHUNKS] += chunks
    step = ((load(board, _WORD) >> 2 * _CHUNK_BITS) + 1) & _STEP_MASK
    store(board, _WORD, (step << 2 * _CHUNK_BITS) | (chunks << _CHUNK_BITS))
    while _work(board, scratch):
        pass
    looks, since = 0, np.int64(0)
    while load(board, _DONE) < chunks:  # only for chunks that workers have taken
        looks += 1
        if looks == _BRIEF:
            since = now()
        if looks < _PATIENT:  # to yield would give the processor away for milliseconds
            pause()
        else:
            give_way()
    if looks > _BRIEF:
        waited = now() - since
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
        takes_part = member < load(board, MEMBERS)
        if looks >= (busy_looks if takes_part and load(board, RUNNING) else idle_looks):
            break
        if takes_part and _work(board, scratch):
            add(board, HELPED, 1)
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
    store(board, MEMBERS, members - s[WITHHELD])
    store(board, RUNNING, 1)


@inner
def end_call(board):
    """As the main thread, publish that the call ends, and check whether the workers helped.

    On a busy machine a worker that waits for work yields its processor, and may get none when there
    is work. Then it takes no chunk, so nobody waits for it. But the system shares out the
    processors among more threads, and the main thread gets less. This is checked after
    _ENOUGH_CHUNKS chunks, which may be those of several calls.
    """
    store(board, RUNNING, 0)
    s = int64s(board, BOARD)
    if s[_CHUNKS] >= _ENOUGH_CHUNKS:
        if not s[WAITED] and _HELP * load(board, HELPED) < s[_CHUNKS]:
            s[WAITED] = UNHELPED
        s[_CHUNKS] = 0
        store(board, HELPED, 0)
