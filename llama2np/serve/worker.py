"""The thread that computes: it owns a Batch, and tells others what its steps have made."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llama2np.decoding.batch import Batch
from llama2np.decoding.completion import Completion
from llama2np.decoding.options import Request


class Full(Exception):
    """There is no room for more requests at the moment."""


class Closed(Exception):
    """The worker is ending, and takes no requests any more."""


@dataclass(frozen=True)
class News:
    """What one step has added to a sequence. It does not change any more."""

    completion: Completion
    index: int  # of the sequence among those that were submitted together
    piece: str
    count: int  # the tokens so far
    done: bool
    seconds: float  # since it was submitted
    first: bool  # whether these are the first news with a token


@dataclass
class Ticket:
    """A sequence that was submitted."""

    request: Request
    index: int
    notify: Callable[[News], None]
    since: float
    completion: Completion | None = None
    cancelled: bool = False
    begun: bool = False  # whether it has a token

    def cancel(self) -> None:
        """End the sequence with the next step. Any thread may call this, also after its end."""
        self.cancelled = True
        if self.completion is not None:
            self.completion.cancel()


class Worker:
    """Runs a Batch in a thread of its own.

    max_waiting: how many requests may wait for their turn. begin: is called first in the thread.
    """

    def __init__(
        self, batch: Batch, max_waiting: int = 64, begin: Callable[[], object] = lambda: None
    ):
        self.batch, self.max_waiting, self._prepare = batch, max_waiting, begin
        self._new: deque[Ticket] = deque()
        self._running: dict[int, Ticket] = {}
        self._change = threading.Condition()
        self._closed = False
        self.pages = 0  # the chunks of KV cache after the last step
        self._thread = threading.Thread(target=self._run, name="llama2np worker", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> int:
        """The number of sequences that are not done."""
        return len(self._new) + len(self._running)

    @property
    def waiting(self) -> int:
        """The number of sequences that wait for their turn."""
        return len(self._new) + self.batch.waiting

    @property
    def capacity(self) -> int:
        """The most sequences at a time, those that wait included."""
        return self.batch.max_sequences + self.max_waiting

    def submit(self, requests: Sequence[Request], notify: Callable[[News], None]) -> list[Ticket]:
        """Let sequences begin with the next steps: all of them, or none.

        notify: called in the worker's thread with the news of these sequences; it must not block.
        Raises Full and Closed.
        """
        now = time.perf_counter()
        tickets = [Ticket(each, i, notify, now) for i, each in enumerate(requests)]
        with self._change:
            if self._closed:
                raise Closed
            if self.busy + len(tickets) > self.capacity:
                raise Full
            self._new += tickets
            self._change.notify()
        return tickets

    def close(self) -> None:
        """End all sequences, and the thread."""
        with self._change:
            self._closed = True
            for ticket in [*self._new, *self._running.values()]:
                ticket.cancel()
            self._change.notify()
        self._thread.join()

    def _run(self) -> None:
        self._prepare()
        while self._begin():
            try:
                for completion, piece in self.batch.step():
                    self._tell(completion, piece)
                self.pages = self.batch.pages
            except Exception as error:  # none of the sequences can go on
                for ticket in list(self._running.values()):
                    if ticket.completion is not None:
                        ticket.completion.error = error
                        self._tell(ticket.completion, "")
                self.batch.clear()
        self.batch.clear()

    def _begin(self) -> bool:
        """Wait for work, and let what was submitted begin; False when it is time to end."""
        with self._change:
            while not self._new and not self._running:
                if self._closed:
                    return False
                self._change.wait()
            while self._new:
                ticket = self._new.popleft()
                ticket.completion = self.batch.add(ticket.request)
                if ticket.cancelled:
                    ticket.completion.cancel()
                self._running[ticket.completion.index] = ticket
            return True

    def _tell(self, completion: Completion, piece: str) -> None:
        ticket = self._running[completion.index]
        if completion.done:
            with self._change:
                del self._running[completion.index]
        seconds, count = time.perf_counter() - ticket.since, len(completion.tokens)
        first, ticket.begun = count > 0 and not ticket.begun, count > 0
        ticket.notify(News(completion, ticket.index, piece, count, completion.done, seconds, first))
