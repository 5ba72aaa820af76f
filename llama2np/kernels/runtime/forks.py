"""A process that is forked while another thread compiles can go on to compile.

A child has one thread, the one that forked. A lock that another thread held at that moment is
held for ever in the child. So the thread that forks takes the locks of numba and LLVM before, and
both processes release them afterwards: a fork waits until what is being compiled is done.

The order is the one in which a compiling thread takes them: the compiler's lock, then LLVM's. Both
let the thread that holds them take them again: a fork from within the compiler, of a signal handler
or a callback, does not wait for itself.
"""

import os
from typing import Any

from llvmlite.binding import ffi
from numba.core.compiler_lock import global_compiler_lock

# The last one is not public. A version without it has one danger more, and works.
_LOCKS = (
    global_compiler_lock,
    getattr(getattr(ffi, "lib", None), "_lock", None),
)
_held: list[Any] = []  # by the thread that forks: the first lock keeps all others out


def _before() -> None:
    for lock in _LOCKS:
        if lock is not None:
            lock.__enter__()
            _held.append(lock)


def _after() -> None:
    mine = _held[:]
    _held.clear()  # while the first lock is still ours: then the next thread may append
    for lock in reversed(mine):
        lock.__exit__(None, None, None)


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)
