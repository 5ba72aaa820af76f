"""Make fork safe while another thread compiles: the child can compile, too.

A child process has only the thread that forked. A lock that another thread holds at that moment is
never released in the child. So the forking thread acquires the locks of numba and LLVM before, and
both processes release them afterwards: a fork waits until the present compilation ends.

The locks are acquired in the order of a compiling thread: the compiler's lock, then LLVM's. Both
are reentrant, so a fork inside the compiler, in a signal handler or a callback, does not deadlock.
"""

import os
from typing import Any

from llvmlite.binding import ffi
from numba.core.compiler_lock import global_compiler_lock

# The last one is not public. If a version lacks it, only that one lock is not protected.
_LOCKS = (
    global_compiler_lock,
    getattr(getattr(ffi, "lib", None), "_lock", None),
)
_held: list[Any] = []  # by the forking thread: the first lock excludes all others


def _before() -> None:
    for lock in _LOCKS:
        if lock is not None:
            lock.__enter__()
            _held.append(lock)


def _after() -> None:
    mine = _held[:]
    _held.clear()  # before the first lock is released, since then another thread may append
    for lock in reversed(mine):
        lock.__exit__(None, None, None)


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)
