"""Parallel kernels that any thread may call, and a process that was forked.

numba runs a parallel region on one of three libraries, its threading layers. workqueue, which is
what is left where neither OpenMP nor TBB is installed, ends the process when two threads enter a
region at once: there, they take turns. GNU's OpenMP ends a process that was forked from one that
has used it: there, kernels run on one thread.
"""

import functools
import os
import threading

import numba

__all__ = ["shared"]


class _Regions:
    """What is known of the threading layer. It is chosen when the first region is entered."""

    def __init__(self):
        self.one_thread = False  # a forked process
        self.any_number = False  # of threads may enter at once
        self.lock = threading.Lock()

    def look(self):
        self.any_number = layer() in ("omp", "tbb")

    def after_fork(self):
        self.lock = threading.Lock()  # perhaps held by a thread that is not here any more
        self.one_thread = self.one_thread or layer() == "omp"


def layer():
    """The name of the threading layer, None before the first parallel region."""
    try:
        return numba.threading_layer()
    except ValueError:
        return None


_regions = _Regions()
if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_regions.after_fork)


def shared(parallel, compile_serial):
    """`parallel`, a compiled kernel, made safe. compile_serial() gives the same on one thread."""
    serial = functools.cache(compile_serial)

    @functools.wraps(parallel)
    def call(*arguments):
        if _regions.any_number and not _regions.one_thread:
            parallel(*arguments)
        elif _regions.one_thread:
            serial()(*arguments)
        else:
            with _regions.lock:
                parallel(*arguments)
            _regions.look()

    return call
