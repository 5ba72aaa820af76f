"""Words that several threads or processes read and write, and what a thread does while it waits."""

import os
import platform
import time

import numba
import numpy as np
from llvmlite import ir
from numba import int64, types
from numba.core import cgutils
from numba.extending import intrinsic

from llama2np.kernels.runtime.jit import inner
from llama2np.kernels.runtime.memory import int64s
from llama2np.kernels.runtime.vectors import I32, I64, call

_X86, _UNIX = platform.machine() in ("x86_64", "AMD64"), hasattr(os, "sched_yield")

# `load`, `store`, `add` and `swap` take the address of an array of int64, and an index. A thread
# that loads what another one has stored sees all that this one wrote before.

if numba.config.DISABLE_JIT:

    def load(board, place):
        return int(int64s(board, place + 1)[place])

    def store(board, place, value):
        int64s(board, place + 1)[place] = value

    def add(board, place, value):
        int64s(board, place + 1)[place] += value

    def swap(board, place, expected, value):
        found = load(board, place)
        if found == expected:
            store(board, place, value)
        return found

    def pause():
        pass

    give_way, now = pause, time.monotonic_ns

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

    load = _atomic(lambda b, at: b.load_atomic(at, "acquire", 8), types.int64, 0)
    store = _atomic(lambda b, at, v: b.store_atomic(v, at, "release", 8), types.void, 1)
    add = _atomic(lambda b, at, v: b.atomic_rmw("add", at, v, "acq_rel"), types.void, 1)
    swap = _atomic(
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
    pause = _instruction("llvm.x86.sse2.pause", ir.VoidType()) if _X86 else inner(lambda: None)
    give_way = _instruction("sched_yield", I32) if _UNIX else pause

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
    now = _clock if _UNIX else inner(lambda: np.int64(0))
