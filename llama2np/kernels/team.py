"""Threads that go through a network together, step by step, in one parallel region.

A region of numba's costs four microseconds, as much as a matrix of a small network; a step of a
team less than one. All members run the same program. Member 0 leads: it does alone what cannot be
shared, and opens a step when its input is there. Everyone takes parts of the step until none is
left, and the leader waits until those that were taken are done. It never waits for a member to
come: if the others are late, or there are none, it takes every part. A member that has waited too
long for the next step goes home.
"""

import os
import platform

import numba
import numpy as np
from llvmlite import ir
from numba import int64, types
from numba.extending import intrinsic

from llama2np.kernels.jit import inner
from llama2np.kernels.vectors import I32, call, data_of

# A board is an array of int64. These places are far apart: in one line of a cache, who writes one
# would slow down who reads the other.
_OPEN, _DONE, _SIZE = 16, 32, 48
_PARTS = 32  # bits: _OPEN holds the number of the open step, and in these its next part
_MASK, _LAST = 2**_PARTS - 1, 2**30
_SMALL = 2**15  # multiply-adds below which the leader is faster alone
# An index out of range ends a member in the middle of a part, and the leader would wait for it.
_CHECKED = bool(numba.config.BOUNDSCHECK)

_X86, _UNIX = platform.machine() in ("x86_64", "AMD64"), hasattr(os, "sched_yield")
# Looks at the board until a member goes home: tens of milliseconds. A look with a pause is longer.
_PATIENCE = 2**20 if _X86 else 2**23

if numba.config.DISABLE_JIT:

    def _load(board, place):
        return int(board[place])

    def _store(board, place, value):
        board[place] = value

    def _add(board, place, value):
        board[place] += value

    def _swap(board, place, expected, value):
        found = int(board[place])
        board[place] = value if found == expected else found
        return found

    def _pause():
        pass

    _yield = _pause

else:

    def _atomic(operate, returns, count):
        """An intrinsic (board, place, ...) of `count` values. operate(builder, pointer, *values)"""

        def generate(context, builder, signature, arguments):
            (data,) = data_of(context, builder, signature, arguments, 0)
            found = operate(builder, builder.gep(data, [arguments[1]]), *arguments[2:])
            return found if returns is types.int64 else context.get_dummy_value()

        def kinds(board):
            return returns(board, types.intp, *[types.int64] * count), generate

        functions = (
            lambda _context, board, place: kinds(board),
            lambda _context, board, place, value: kinds(board),
            lambda _context, board, place, expected, value: kinds(board),
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
        """An intrinsic that calls an LLVM function, or one of the C library, without arguments."""

        def generate(context, builder, _signature, _arguments):
            call(builder, name, result)
            return context.get_dummy_value()

        return intrinsic(lambda _context: (types.void(), generate))

    # Tell the CPU that this thread waits, so that its other half, and the memory, have peace; and
    # the system, so that others have the CPU (on Windows not: it is the scheduler's to find out).
    _pause = _instruction("llvm.x86.sse2.pause", ir.VoidType()) if _X86 else inner(lambda: None)
    _yield = _instruction("sched_yield", I32) if _UNIX else _pause


@inner
def _rest(looks):
    """Before the board is looked at again."""
    if looks % 256:
        _pause()
    else:
        _yield()


@inner
def new_board():
    """What the members of a team look at: all places are 0, no step is open."""
    return np.zeros(_SIZE, np.int64)


# A team, as a member has it: the board, the number of this member, and how many there are.
TEAM = types.Tuple((int64[::1], int64, int64))


@inner
def leads(team):
    """Whether this member is the leader."""
    return team[1] == 0


@inner
def shares(team, work):
    """Whether a team shares so many multiply-adds; else the leader does them alone."""
    return not _CHECKED and team[2] > 1 and work >= _SMALL


@inner
def begin(team, step):
    """Open a step as the leader, or wait until it is; False: it is time to go home.

    Steps are numbered from 1, and the leader has ended the one before; 0: this member went home.
    """
    board, looks = team[0], 0
    if leads(team):
        _store(board, _DONE, 0)
        _store(board, _OPEN, step << _PARTS)
        return True
    while _load(board, _OPEN) >> _PARTS < step and looks < _PATIENCE:
        looks += 1
        _rest(looks)
    return step > 0 and looks < _PATIENCE


@inner
def take(team, step, parts):
    """The number of a part that nobody else has, or `parts` if none is left."""
    board = team[0]
    opened = _load(board, _OPEN)
    while opened >> _PARTS == step and opened & _MASK < parts:
        found = _swap(board, _OPEN, opened, opened + 1)
        if found == opened:
            return opened & _MASK
        opened = found
    return parts


@inner
def done(team):
    """A part that was taken is done."""
    _add(team[0], _DONE, 1)


@inner
def end(team, parts):
    """As the leader, wait until all parts are done."""
    looks = 0
    while leads(team) and _load(team[0], _DONE) < parts:
        looks += 1
        _rest(looks)


@inner
def finish(team):
    """As the leader: no step is left, and who comes now is not needed."""
    if leads(team):
        _store(team[0], _OPEN, _LAST << _PARTS)
