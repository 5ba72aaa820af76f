"""The thread pool: the calling thread, which is the main thread of a call, and workers.

Workers are Python threads inside compiled code, without the GIL. Between calls they spin for some
microseconds and then sleep on a lock, so an idle program costs nothing. If other programs keep the
processors busy, the system may preempt a worker in the middle of a chunk, and all threads wait for
it, or it may give a worker no processor at all: then fewer threads are used for a while
(backoff.py). Reading a prompt is one call, which may take seconds. A worker that takes no part in
the current call checks every few milliseconds whether it may.

A thread of a call is called a member: the main thread is member 0, the workers are 1, 2 ...

Only one call at a time uses the workers; calls from other threads run on one thread meanwhile. A
forked process starts its own workers.
"""

from __future__ import annotations

import _thread
import atexit
import os
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np

from llama2np.aligned import aligned_zeros
from llama2np.arguments import whole
from llama2np.kernels.runtime.backoff import Backoff
from llama2np.kernels.runtime.jit import PLAIN
from llama2np.kernels.runtime.op import SCRATCH
from llama2np.kernels.runtime.shared import (
    BOARD,
    CALL_MEMBERS,
    MAX_MEMBERS,
    MEMBERS,
    RUNNING,
    WAITED,
    WITHHELD,
    serve,
)
from llama2np.processors import processors

__all__ = ["SCRATCH", "POOL", "max_threads", "set_threads", "threads"]

# Multiply-adds of a call: waking the workers costs less than it saves from here on. Which steps of
# the call are then shared is decided in shared.py.
_SHARED_WORK = 2**18
# The spin limits: how often a worker checks for work before it sleeps. Between calls this takes 100
# to 200 microseconds, during a call some milliseconds, in which it also yields its processor.
_IDLE_LOOKS, _BUSY_LOOKS = 2**12, 2**17
# Multiply-adds of a long call: 10 milliseconds or more. If it begins on a busy machine with few
# threads, more can take part later.
_LONG_WORK = 2**31
_SLEEP = 0.004  # seconds between two checks of a worker that takes no part in the current call


def max_threads() -> int:
    """The maximum number of threads: one for each processor, or NUMBA_NUM_THREADS."""
    return int(min(numba.config.NUMBA_NUM_THREADS, MAX_MEMBERS))


@cache
def _default() -> int:
    """The default number of threads, which a quota of processor time limits, too."""
    if "NUMBA_NUM_THREADS" in os.environ:
        return max_threads()
    return min(processors(), max_threads())


class _Worker:
    def __init__(self) -> None:
        self.asleep = False
        self.wake = _thread.allocate_lock()
        self.wake.acquire()


class _Pool:
    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start without workers: at import, and in a forked process, which has none."""
        self.busy = _thread.allocate_lock()
        self.board = aligned_zeros((BOARD,), np.int64)
        self.address = int(self.board.ctypes.data)
        self.workers: list[_Worker] = []
        self.calls, self.stopped = 0, False
        self.backoff = Backoff()
        self.scratch = threading.local()

    def own_scratch(self) -> Any:
        """The address of the scratch memory of the calling thread."""
        try:
            return self.scratch.address
        except AttributeError:
            self.scratch.memory = aligned_zeros((SCRATCH,), np.uint8)
            self.scratch.address = self.scratch.memory.ctypes.data
            return self.scratch.address

    def run(self, kernel: Callable[..., None], work: int, *arguments: Any) -> None:
        """Call kernel(board, members, scratch, *arguments), perhaps with workers.

        members: the number of threads, the calling one included; 1 for little work, on a busy
        machine, and while another thread's call uses the workers. work: multiply-adds of the whole
        call.
        """
        scratch = self.own_scratch()
        members = now = 1
        if work >= _SHARED_WORK and not PLAIN:
            most = threads()
            now = self.backoff.threads(most)
            members = most if work >= _LONG_WORK else now
        if members == 1 or not self.busy.acquire(False):
            kernel(self.address, 1, scratch, *arguments)
            return
        try:
            self.board[WITHHELD] = members - now
            self._wake(members - 1)
            kernel(self.address, members, scratch, *arguments)
            if waited := self.board[WAITED]:
                self.backoff.waited(int(waited))
        finally:
            self.busy.release()

    def _wake(self, count: int) -> None:
        """Start workers up to this count, and wake those that sleep."""
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

    def _serve(self, member: int) -> None:
        """The main loop of a worker. It holds the GIL here, so no wake-up is lost."""
        worker, board = self.workers[member - 1], self.address
        scratch = self.own_scratch()
        while not self.stopped:
            seen = self.calls
            serve(board, member, scratch, _IDLE_LOOKS, _BUSY_LOOKS)
            if self.calls != seen:
                continue
            if self.board[RUNNING] and member < self.board[CALL_MEMBERS]:
                time.sleep(_SLEEP)
                self._reconsider()
            else:
                worker.asleep = True
                worker.wake.acquire()

    def _reconsider(self) -> None:
        """During a call that uses fewer threads than it may, choose their number again.

        The main thread is in compiled code. It may change the same words meanwhile; then the call
        has one thread too many, or too few, until the next wait or the next look.
        """
        most = int(self.board[CALL_MEMBERS])
        if self.board[RUNNING] and self.board[MEMBERS] < most:
            if waited := self.board[WAITED]:
                self.board[WAITED] = 0
                self.backoff.waited(int(waited))
            self.board[MEMBERS] = self.backoff.threads(most, own=2)

    def stop(self) -> None:
        """Stop the workers: compiled code must not run while the interpreter shuts down."""
        self.stopped = True
        self._wake(0)
        for worker in self.workers:
            if worker.asleep:
                worker.asleep = False
                worker.wake.release()


POOL = _Pool()
atexit.register(lambda: POOL.stop())
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=POOL.reset)

_chosen = threading.local()


def set_threads(count: int) -> None:
    """Use `count` threads for calls from this thread; other threads keep the default or their own.

    There are never more threads than processors, but `count` may be up to twice that number.
    Raises ValueError.
    """
    most, count = max_threads(), whole("threads", count)
    if not 1 <= count <= 2 * most:
        raise ValueError(f"threads must be 1 to {2 * most} on this machine, not {count}")
    _chosen.count = min(count, most)


def threads() -> int:
    """The number of threads for calls from this thread."""
    return getattr(_chosen, "count", None) or _default()
