"""When kernels may share work among threads: with other threads about, and in forked processes.

numba runs a parallel region on one of three libraries, its threading layers. workqueue, which is
what is left where neither OpenMP nor TBB is installed, ends the process when two threads enter a
region at once: there, they take turns. GNU's OpenMP ends a process that was forked from one that
has used it: there, kernels run on one thread.
"""

import functools
import os
import threading

import numba

__all__ = ["guarded", "may_use_threads", "set_threads", "shared", "threads"]

_SHARED = 65536  # multiply-adds from which on sharing them pays
_NEVER = 2**62


class _Regions:
    """What is known of the threading layer. The first guarded call starts it."""

    def __init__(self):
        self.shared = _SHARED
        self.any_number = False  # of threads may enter at once
        self.lock = threading.Lock()

    def look(self):
        self.any_number = layer() in ("omp", "tbb")

    def after_fork(self):
        self.lock = threading.Lock()  # perhaps held by a thread that is not here any more
        if layer() == "omp":
            self.shared = _NEVER


def layer():
    """The name of the threading layer, None before the first guarded call."""
    try:
        return numba.threading_layer()
    except ValueError:
        return None


_regions = _Regions()
if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_regions.after_fork)


def shared() -> int:
    """The number of multiply-adds from which on threads are to share them."""
    return _regions.shared


def may_use_threads() -> bool:
    """Whether kernels that always share their work may be called: not in a forked process."""
    return _regions.shared != _NEVER


def guarded(kernel):
    """A kernel that may enter a parallel region, for any thread to call."""
    if kernel is None:
        return None

    @functools.wraps(kernel)
    def call(*arguments):
        if _regions.any_number:
            kernel(*arguments)
        else:
            with _regions.lock:
                # Starts the threading layer. What was compiled from kernels found in the cache, and
                # is now found there itself, does not know that it needs it, and crashes.
                numba.get_num_threads()
                kernel(*arguments)
            _regions.look()

    return call


def set_threads(count: int) -> None:
    """Use `count` threads in what this thread calls; others use all, or as they say.

    More threads than processors would only wait for each other: up to twice as many may be asked
    for, and there are as many as processors then. Raises ValueError.
    """
    most = numba.config.NUMBA_NUM_THREADS
    if not 1 <= count <= 2 * most:
        raise ValueError(f"threads must be 1 to {2 * most} on this machine, not {count}")
    numba.set_num_threads(min(count, most))


def threads() -> int:
    """How many threads take part in what this thread calls."""
    return int(numba.get_num_threads())
