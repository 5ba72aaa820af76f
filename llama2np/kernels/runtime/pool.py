"""The threads of this process that compute: the calling thread and workers of our own.

Workers are Python threads inside compiled code, without the GIL. Between calls they spin for some
microseconds and then sleep on a lock, so an idle program costs nothing. Where other programs keep
the processors busy, a worker that loses its processor in the middle of a chunk makes everyone wait:
the pool notices, and lets calls run on one thread for a while (`_Contention`).

One call at a time has the workers; others, from other threads, run alone meanwhile. A forked
process starts workers of its own.
"""

import _thread
import atexit
import os
import threading
import time

import numba
import numpy as np

from llama2np.aligned import aligned_zeros
from llama2np.kernels.runtime.jit import PLAIN
from llama2np.kernels.runtime.shared import BOARD, MAX_MEMBERS, WAITED, serve

__all__ = ["SCRATCH", "POOL", "max_threads", "set_threads", "threads"]

SCRATCH = 2**15  # bytes of scratch memory for each thread
_SHARED_WORK = 2**18  # multiply-adds of a call from which waking the workers pays
# How often a worker looks at the board in vain before it sleeps: between calls some 100 to 200
# microseconds, during a call some milliseconds, in which it yields its processor.
_IDLE_LOOKS, _BUSY_LOOKS = 2**12, 2**17


def max_threads() -> int:
    """How many threads can be used: one for each processor this process may use."""
    return min(int(numba.config.NUMBA_NUM_THREADS), MAX_MEMBERS)


class _Contention:
    """Decides whether sharing pays now, by how long the main thread waited for workers.

    After a call in which it waited too long, calls run alone for a while: twice as long each time
    that sharing fails again, and from the start once it has worked for some time.
    """

    FIRST, LONGEST = 0.01, 0.5  # seconds alone
    LEAST_WAIT = 0.0003  # seconds, from which on a wait can be too long

    def __init__(self):
        self.alone_until = 0.0
        self.pause = self.FIRST
        self.well = 0.0  # seconds of sharing without trouble

    def note(self, seconds, waited, now):
        """Take note of a shared call that took `seconds`, `waited` of them in vain."""
        if waited > self.LEAST_WAIT and waited > seconds / 3:
            self.alone_until, self.well = now + self.pause, 0.0
            self.pause = min(2 * self.pause, self.LONGEST)
        else:
            self.well += seconds
            if self.well > 4 * self.pause:
                self.pause = self.FIRST


class _Worker:
    def __init__(self):
        self.asleep = False
        self.wake = _thread.allocate_lock()
        self.wake.acquire()


class _Pool:
    def __init__(self):
        self.reset()

    def reset(self):
        """Begin without workers: at import, and in a forked process, which has none."""
        self.busy = _thread.allocate_lock()
        self.board = aligned_zeros((BOARD,), np.int64)
        self.address = self.board.ctypes.data
        self.workers, self.calls, self.stopped = [], 0, False
        self.contention = _Contention()
        self.scratch = threading.local()

    def own_scratch(self):
        """The address of scratch memory of the calling thread."""
        try:
            return self.scratch.address
        except AttributeError:
            self.scratch.memory = aligned_zeros((SCRATCH,), np.uint8)
            self.scratch.address = self.scratch.memory.ctypes.data
            return self.scratch.address

    def run(self, kernel, work, *arguments):
        """Call kernel(board, members, scratch, *arguments) with as many threads as pay for `work`.

        work: multiply-adds of the whole call.
        """
        scratch = self.own_scratch()
        members = threads() if work >= _SHARED_WORK and not PLAIN else 1
        if members > 1:
            now = time.perf_counter()
            if now < self.contention.alone_until or not self.busy.acquire(False):
                members = 1
        if members == 1:
            kernel(self.address, 1, scratch, *arguments)
            return
        try:
            self._wake(members - 1)
            kernel(self.address, members, scratch, *arguments)
            end = time.perf_counter()
            waited = int(self.board[WAITED]) * _seconds_of_a_look()
            self.contention.note(end - now, waited, end)
        finally:
            self.busy.release()

    def _wake(self, count):
        """Start workers up to this count; wake those of them that sleep."""
        self.calls += 1
        while len(self.workers) < count:
            self.workers.append(_Worker())
            member = len(self.workers)
            name = f"llama2np worker {member}"
            threading.Thread(target=self._serve, args=(member,), name=name, daemon=True).start()
        for worker in self.workers[:count]:
            if worker.asleep:
                worker.asleep = False
                worker.wake.release()

    def _serve(self, member):
        """A worker's life. What is done here is done under the GIL, so a wake-up is never lost."""
        worker, board = self.workers[member - 1], self.address
        scratch = self.own_scratch()
        while not self.stopped:
            seen = self.calls
            serve(board, member, scratch, _IDLE_LOOKS, _BUSY_LOOKS)
            if self.calls == seen:
                worker.asleep = True
                worker.wake.acquire()

    def stop(self):
        """End the workers: compiled code must not run while Python takes itself apart."""
        self.stopped = True
        self._wake(0)
        for worker in self.workers:
            if worker.asleep:
                worker.asleep = False
                worker.wake.release()


POOL = _Pool()
atexit.register(lambda: POOL.stop())
if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=POOL.reset)

_look = 0.0


def _seconds_of_a_look():
    """How long a thread that waits takes for a look at the board, measured once."""
    global _look
    if not _look:
        board, looks = aligned_zeros((BOARD,), np.int64), 2000
        serve(board.ctypes.data, 1, 0, looks, looks)
        start = time.perf_counter()
        serve(board.ctypes.data, 1, 0, looks, looks)
        _look = (time.perf_counter() - start) / looks
    return _look


_chosen = threading.local()


def set_threads(count: int) -> None:
    """Use `count` threads for calls from this thread; other threads use all, or what they chose.

    There are never more than processors; up to twice as many may be given. Raises ValueError.
    """
    most = max_threads()
    if not 1 <= count <= 2 * most:
        raise ValueError(f"threads must be 1 to {2 * most} on this machine, not {count}")
    _chosen.count = min(count, most)


def threads() -> int:
    """How many threads take part in calls from this thread."""
    return getattr(_chosen, "count", None) or max_threads()
