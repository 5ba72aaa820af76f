"""What the ranks exchange: see model/split_engine.py.

On one machine small arrays go through shared memory (near.py), all else over mpi4py.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np

from llama2np.mpi.near import LONGEST_NAP, SHORTEST_NAP, SLOT, Near, near
from llama2np.mpi.watch import Watch

# If the arrays of all ranks have this many float32 values, each rank adds up a part of them: fewer
# bytes, but two exchanges.
_LARGE = 2**15
_FIXED = 256  # int64 numbers of a message that tells a pass; more of them follow in a second one
_END, _OBJECT = -1, -2  # in place of the number of numbers
_SPIN = 0.002  # seconds; after that a rank without work sleeps between two looks
_PATIENCE = 5.0  # seconds that rank 0 waits at the end for the others


class MpiPeers:
    """The exchange of arrays and commands between the ranks. See `Peers`."""

    def __init__(self, comm: Any, name: str):
        """comm: a communicator of mpi4py. It is duplicated: other messages do not interfere.
        name: of this rank, for people.
        """
        self._comm = comm.Dup()
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.prepare: Callable[[], None] = lambda: None  # called by the thread whose turn it is
        self.broken = False  # whether a pass ended in the middle, so that the ranks do not agree
        self._terms = np.empty((self.size, 0), np.float32)
        self._head = np.empty(_FIXED, np.int64)
        self._near: Near | None = None
        self._waits = 0  # is odd while this rank waits for others in an exchange
        self._watch = Watch(comm.Dup(), comm.allgather(name), lambda: self._waits)
        self._lock = threading.Lock()

    def meet_in_memory(self, mpi: Any, crowded: bool) -> None:
        """Exchange small arrays through shared memory if all ranks are on one machine.

        All ranks must call this at the same time. mpi: mpi4py's module; crowded: as for Near.
        """
        if self._near is None and self.size > 1:
            self._near = near(mpi, self._comm, crowded, self._waiting)

    def watch(self) -> None:
        """Say from now on which rank does not answer: see watch.py."""
        self._watch.start()

    def _waiting(self) -> None:
        self._waits += 1

    @contextmanager
    def _wait_for_others(self) -> Iterator[None]:
        """A block in which MPI waits until the other ranks do the same."""
        self._waits += 1
        yield
        self._waits += 1

    # --- arrays ---

    def sum(self, array: np.ndarray) -> None:
        """Replace an array by the sum over all ranks, in the order of the ranks.

        So the bits are the same on all of them, whatever MPI's own algorithms are.
        """
        flat = array.reshape(-1)
        if self._near and flat.nbytes <= SLOT:
            _add(self._near.exchange(flat)[:, : flat.size], flat)
            return
        if self.size > 2 and flat.size * self.size >= _LARGE:
            self._sum_in_parts(flat)
            return
        terms = self._room(flat.size)
        with self._wait_for_others():
            self._comm.Allgather(flat, terms)
        _add(terms, flat)

    def _sum_in_parts(self, flat: np.ndarray) -> None:
        """Rank i adds up part i of all arrays, and gives it to the others."""
        width = -(-flat.size // self.size)
        mine = np.zeros((self.size, width), np.float32)
        mine.reshape(-1)[: flat.size] = flat
        terms = self._room(width)
        with self._wait_for_others():
            self._comm.Alltoall(mine, terms)
        part = np.empty(width, np.float32)
        _add(terms, part)
        with self._wait_for_others():
            self._comm.Allgather(part, mine)
        flat[:] = mine.reshape(-1)[: flat.size]

    def _room(self, width: int) -> np.ndarray:
        """Memory for an array of this width of each rank."""
        if self._terms.size < self.size * width:
            self._terms = np.empty(self.size * width, np.float32)
        return self._terms.reshape(-1)[: self.size * width].reshape(self.size, width)

    def gather(self, part: np.ndarray, whole: np.ndarray | None, parts: list[int]) -> None:
        """Put the columns of all ranks next to each other, on rank 0."""
        rows = len(part)
        if self._near and 4 * rows * max(parts) <= SLOT:
            slots = self._near.give(part.reshape(-1), 0)
            if slots is not None and whole is not None:
                _from_slots(slots, whole, parts)
            return
        if whole is None:
            self._comm.Gatherv(part, None, 0)
            return
        into = whole if rows == 1 else np.empty(whole.size, np.float32)
        with self._wait_for_others():
            self._comm.Gatherv(part, [into, [rows * width for width in parts]], 0)
        if rows > 1:
            _side_by_side(into, whole, parts)

    def gather_all(self, part: np.ndarray, whole: np.ndarray, parts: list[int]) -> None:
        """Put the columns of all ranks next to each other, on all ranks."""
        rows = len(part)
        if self._near and 4 * rows * max(parts) <= SLOT:
            _from_slots(self._near.exchange(part.reshape(-1)), whole, parts)
            return
        into = self._room(-(-whole.size // self.size)).reshape(-1)[: whole.size]
        with self._wait_for_others():
            self._comm.Allgatherv(part, [into, [rows * width for width in parts]])
        _side_by_side(into, whole, parts)

    # --- commands ---

    def tell(self, numbers: np.ndarray) -> None:
        """Send numbers to all other ranks."""
        first = self._head
        first[0], some = len(numbers), numbers[: _FIXED - 1]
        first[1 : len(some) + 1] = some
        self._send_head()
        if len(numbers) > len(some):
            with self._wait_for_others():
                self._comm.Bcast(np.ascontiguousarray(numbers[len(some) :]), 0)

    def hear(self) -> np.ndarray | None:
        """Wait for numbers; None at the end."""
        count = self._wait()
        if count < 0:
            return None
        rest = np.empty(max(count - _FIXED + 1, 0), np.int64)
        if len(rest):
            with self._wait_for_others():
                self._comm.Bcast(rest, 0)
        return np.concatenate([self._head[1 : count + 1], rest])

    def tell_object(self, value: object) -> None:
        """Send an object that can be pickled to all other ranks."""
        self._head[0] = _OBJECT
        self._send_head()
        self._comm.bcast(value, 0)

    def hear_object(self) -> Any:
        """Wait for an object; None at the end."""
        return None if self._wait() == _END else self._comm.bcast(None, 0)

    def collect(self, value: object) -> list[Any]:
        """On rank 0, an object of each rank; else []."""
        with self._wait_for_others():
            return self._comm.gather(value, 0) or []

    def _send_head(self) -> None:
        if self._near:
            self._near.tell(self._head)
        else:
            with self._wait_for_others():
                self._comm.Ibcast(self._head, 0).Wait()

    def _wait(self) -> int:
        """Wait for the next message of rank 0, without keeping a processor busy for long.

        MPI's own waiting would: a model that nobody asks anything costs nothing this way.
        """
        if self._near:
            self._head[:] = self._near.hear()[:_FIXED]
            return int(self._head[0])
        request, nap = self._comm.Ibcast(self._head, 0), SHORTEST_NAP
        start = time.perf_counter()
        while not request.Test():
            if time.perf_counter() - start > _SPIN:
                time.sleep(nap)
                nap = min(1.2 * nap, LONGEST_NAP)
        return int(self._head[0])

    # --- rank 0's order, and the end ---

    @contextmanager
    def turn(self) -> Iterator[None]:
        """A block of one thread of rank 0, in which it tells a pass and computes it.

        Ctrl-C waits for its end: the other ranks would wait for the rest of the pass.
        """
        with self._lock, _interrupts_later():
            if self.broken:
                raise RuntimeError("a pass was interrupted: the processes do not agree any more")
            self.prepare()
            self.broken = True
            yield
            self.broken = False

    def end(self) -> None:
        """On rank 0: let the others end. Ends all processes by force if they do not."""
        if not self.broken:
            self._head[0] = _END
            requests = [] if self._near else [self._comm.Ibcast(self._head, 0)]
            if self._near:
                self._near.tell(self._head)
            requests.append(self._comm.Ibarrier())
            until = time.monotonic() + _PATIENCE
            while time.monotonic() < until:
                if all([request.Test() for request in requests]):
                    self._close()
                    return
                time.sleep(SHORTEST_NAP)
        self.abort()

    def ended(self) -> None:
        """On the others: confirm the end."""
        self._comm.Ibarrier().Wait()  # MPI does not match Barrier with Ibarrier
        self._close()

    def _close(self) -> None:
        self._watch.stop()
        if self._near:
            self._near.free()
            self._near = None

    def abort(self) -> None:
        """End all processes at once, with status 1."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._comm.Abort(1)


def _side_by_side(flat: np.ndarray, whole: np.ndarray, parts: list[int]) -> None:
    """From arrays (rows, parts[i]), one after the other, to the columns of one."""
    rows, start = len(whole), 0
    for width in parts:
        part = flat[rows * start : rows * (start + width)]
        whole[:, start : start + width] = part.reshape(rows, width)
        start += width


def _from_slots(slots: np.ndarray, whole: np.ndarray, parts: list[int]) -> None:
    """From arrays (rows, parts[i]), each at the beginning of a slot, to the columns of one."""
    rows, start = len(whole), 0
    for slot, width in zip(slots, parts, strict=True):
        if rows == 1:  # the usual case, in a third of the time
            whole[0, start : start + width] = slot[:width]
        else:
            whole[:, start : start + width] = slot[: rows * width].reshape(rows, width)
        start += width


def _add(terms: np.ndarray, out: np.ndarray) -> None:
    """out = terms[0] + terms[1] + ..., in this order."""
    if len(terms) == 1:
        out[:] = terms[0]
        return
    np.add(terms[0], terms[1], out=out)
    for term in terms[2:]:
        np.add(out, term, out=out)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Let a Ctrl-C in the block take effect at its end. Only the main thread gets any."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    seen: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda *arguments: seen.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if seen:
        before(*seen[0])
