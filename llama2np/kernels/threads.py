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

from llama2np.arguments import whole

__all__ = ["guarded", "may_use_threads", "members", "set_threads", "threads"]

_SHARED = 2**18  # multiply-adds from which on it pays to wake the threads


class _Regions:
    """What is known of the threading layer. The first guarded call starts it."""

    def __init__(self):
        self.forked = False
        self.any_number = False  # of threads may enter at once
        self.lock = threading.Lock()

    def look(self):
        self.any_number = layer() in ("omp", "tbb")

    def after_fork(self):
        self.lock = threading.Lock()  # perhaps held by a thread that is not here any more
        if layer() == "omp":
            self.forked = True


def layer():
    """The name of the threading layer, None before the first guarded call."""
    try:
        return numba.threading_layer()
    except ValueError:
        return None


_regions = _Regions()
if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_regions.after_fork)


def members(work: int) -> int:
    """How many threads are to share so many multiply-adds; 1: it takes longer to wake them."""
    return threads() if work >= _SHARED and may_use_threads() else 1


def may_use_threads() -> bool:
    """Whether kernels that always share their work may be called: not in a forked process."""
    return not _regions.forked


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
    most, count = numba.config.NUMBA_NUM_THREADS, whole("threads", count)
    if not 1 <= count <= 2 * most:
        raise ValueError(f"threads must be 1 to {2 * most} on this machine, not {count}")
    numba.set_num_threads(min(count, most))


def threads() -> int:
    """How many threads take part in what this thread calls."""
    return int(numba.get_num_threads())
