"""A thread in each rank that says which other rank does not answer.

MPI waits for a rank that is stopped (SIGSTOP), or whose machine hangs, for ever and without a word.
So this thread looks once a second how long its rank has been in the same exchange. After some
seconds it asks the other ranks. Their threads answer, even if they compute. Of the ranks that wait,
the first one prints a line that names those without an answer. It waits on: a rank that continues
is still a part of the computation.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

_QUESTION, _ANSWER = 1, 2  # tags of messages, which are empty
_EACH = 1.0  # seconds between two checks
# An exchange that has not ended after ASK checks: this rank asks the others whether they are there.
# After SAY checks it prints which of them have not answered.
ASK, SAY = 5, 10


class Watch:
    """Watches the exchanges of this rank, from `start` to `stop`."""

    def __init__(self, comm: Any, names: list[str], exchanges: Callable[[], int]):
        """comm: a communicator of its own. names: of all ranks, for people. exchanges: returns a
        number that changes whenever this rank begins or ends an exchange; odd means inside one.
        """
        self._comm, self._names, self._exchanges = comm, names, exchanges
        self._rank = comm.Get_rank()
        self._nothing = np.empty(0, np.uint8)
        self._asked: dict[int, Any] = {}  # ranks that have not answered yet
        self._sent: list[Any] = []
        self._silent: list[int] = []  # those that were named
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="llama2np watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End: messages that nobody has answered are withdrawn."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self._note_answers()
        for request in self._asked.values():
            request.Cancel()
            request.Free()

    def _run(self) -> None:
        seen = looks = 0
        while not self._ended.wait(_EACH):
            self._answer()
            now = self._exchanges()
            looks = looks + 1 if now == seen and now & 1 else 0
            seen = now
            if looks == ASK:
                self._ask()
            elif looks == SAY:
                self._say()
            elif not looks and self._silent:
                _print(f"{self._listed(self._silent)} answered: going on")
                self._silent = []

    def _answer(self) -> None:
        """Answer all questions."""
        for rank in range(len(self._names)):
            while self._comm.Iprobe(rank, _QUESTION):
                self._comm.Recv(self._nothing, rank, _QUESTION)
                self._send(rank, _ANSWER)

    def _ask(self) -> None:
        """Ask all other ranks, except those that have not answered the last question yet."""
        self._note_answers()
        for rank in range(len(self._names)):
            if rank != self._rank and rank not in self._asked:
                self._asked[rank] = self._comm.Irecv(self._nothing, rank, _ANSWER)
                self._send(rank, _QUESTION)

    def _say(self) -> None:
        """Name the ranks without an answer, unless a rank before this one answers: it does that."""
        self._note_answers()
        no_earlier_rank_answers = all(rank in self._asked for rank in range(self._rank))
        if self._asked and no_earlier_rank_answers:
            self._silent = sorted(self._asked)
            _print(
                f"{self._listed(self._silent)} has not answered for {SAY * _EACH:.0f} seconds: "
                "stopped, or its machine is unreachable? Waiting"
            )

    def _note_answers(self) -> None:
        self._asked = {rank: each for rank, each in self._asked.items() if not each.Test()}

    def _send(self, rank: int, tag: int) -> None:
        self._sent = [each for each in self._sent if not each.Test()]
        self._sent.append(self._comm.Isend(self._nothing, rank, tag))

    def _listed(self, ranks: Iterable[int]) -> str:
        return ", ".join(self._names[rank] for rank in ranks)


def _print(text: str) -> None:
    print(f"llama2np: {text}", file=sys.stderr, flush=True)
