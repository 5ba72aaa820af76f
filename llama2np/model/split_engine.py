"""An engine for a network that several processes share out: see shares.py.

Rank 0 decides everything: it runs the program of the user, and tells the other ranks each pass that
it computes, in a few numbers. They follow: `follow` computes the same passes of their shares, with
States that mirror those of rank 0. A rank computes its program in pieces, as with hooks: up to a
step after which the ranks exchange something, then the exchange, then the next piece. At the end
rank 0 gathers the logits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from itertools import count as counter
from typing import Protocol

import numpy as np

from llama2np.model.engine import Engine, Run
from llama2np.model.program import Program, Step, Value
from llama2np.model.shares import GATHERED, Share, exchanges
from llama2np.model.state import State

_FORK, _DROP = 0, 1  # what happened to States since the last pass
_NEWS, _STATE, _HEAD = 4, 5, 5  # the numbers of one such news, of a State, and before all of them


class Peers(Protocol):
    """How the ranks talk. All must call `sum`, `gather` and `gather_all` in the same order."""

    rank: int
    size: int

    def sum(self, array: np.ndarray) -> None:
        """Replace a float32 array by the sum of those of all ranks: ((a0 + a1) + a2) + ..."""

    def gather(self, part: np.ndarray, whole: np.ndarray | None, parts: list[int]) -> None:
        """On rank 0, fill whole (rows, sum of parts) with the part (rows, parts[rank]) of each."""

    def gather_all(self, part: np.ndarray, whole: np.ndarray, parts: list[int]) -> None:
        """On all ranks, fill whole (rows, sum of parts) with the part of each, as in `gather`."""

    def tell(self, numbers: np.ndarray) -> None:
        """On rank 0: send int64 numbers to all others, who get them from `hear`."""

    def hear(self) -> np.ndarray | None:
        """On the others: wait for the numbers that rank 0 tells; None at the end."""

    def turn(self) -> AbstractContextManager[None]:
        """On rank 0: a block in which one thread tells a pass and computes it."""


class SplitEngine:
    """Computes the program of rank 0, together with the other ranks. See model/engine.py."""

    def __init__(self, program: Program, inner: Engine, peers: Peers, shares: list[Share]):
        """inner: an engine for `program`, which is that of shares[peers.rank].

        Raises ValueError for a description that cannot be shared out.
        """
        self.program, self.peers = program, peers
        self._ledger = _Ledger()
        self._pieces = Pieces(program, inner, peers, shares)

    def run(
        self,
        tokens: np.ndarray,
        states: list[State],
        counts: list[int],
        logits: np.ndarray,
        picked: np.ndarray | None = None,
        laps: int = 1,
        types: np.ndarray | None = None,
        positions: np.ndarray | None = None,
    ) -> SplitRun:
        """Prepare a pass: see Engine.run. There are no types and positions, which encoders have.

        Raises ValueError for several laps, and for a State that was read elsewhere.
        """
        if laps > 1:
            raise ValueError("greedy: several processes must use forward, token by token")
        for state in states:
            self._ledger.enter(state)
        return SplitRun(self, tokens, states, counts, logits, picked)

    def compute(self, run: SplitRun) -> None:
        """Compute a pass, on all ranks."""
        with self.peers.turn():
            self.peers.tell(self._ledger.told(run))
            self._pieces.compute(run.tokens, run.states, run.counts, run.logits, run.picked)


class SplitRun:
    """One pass, which is computed as a whole."""

    def __init__(
        self,
        engine: SplitEngine,
        tokens: np.ndarray,
        states: list[State],
        counts: list[int],
        logits: np.ndarray,
        picked: np.ndarray | None,
    ):
        self._engine, self.tokens, self.states, self.counts = engine, tokens, states, counts
        self.logits, self.picked = logits, picked
        self.exchanges: list[Callable[[], None]] = []

    def go(self, start: int = 0, stop: int | None = None) -> None:
        """Compute the pass. Raises ValueError for a part of it."""
        if start or stop is not None:
            raise ValueError(_AS_A_WHOLE)
        self._engine.compute(self)

    def array(self, value: Value) -> np.ndarray:
        """Not available: raises ValueError."""
        raise ValueError(_AS_A_WHOLE)

    def put(self, value: Value, array: np.ndarray) -> None:
        """Not available: raises ValueError."""
        raise ValueError(_AS_A_WHOLE)

    def room(self, value: Value) -> np.ndarray:
        """Not available: raises ValueError."""
        raise ValueError(_AS_A_WHOLE)


_AS_A_WHOLE = (
    "hooks, walk, unembed and step_seconds need a network in one process: this one is shared out "
    "among several"
)


class Pieces:
    """Computes a rank's program: a piece, an exchange, the next piece."""

    def __init__(self, program: Program, inner: Engine, peers: Peers, shares: list[Share]):
        self._inner, self._peers, self._stops = inner, peers, exchanges(program)
        self._parts = [share.width("outputs") for share in shares]
        self._gathered = [[share.width(what) for share in shares] for what in GATHERED]
        self._width = self._parts[peers.rank]
        if program.output.width != self._width:
            raise ValueError(
                f"{program.steps[-1].name}: only the logits of a matrix called classifier are "
                "shared out among processes"
            )

    def compute(
        self,
        tokens: np.ndarray,
        states: list[State],
        counts: list[int],
        logits: np.ndarray,
        picked: np.ndarray | None,
    ) -> None:
        """Compute a pass. logits: (wanted, vocab_size), filled on rank 0."""
        part = np.empty((len(logits), self._width), np.float32)
        run, start = self._inner.run(tokens, states, counts, part, picked), 0
        exchanges = run.exchanges  # for a run that is used again, they are already there
        for i, stop in enumerate(self._stops):
            run.go(start, stop.index + 1)
            if i == len(exchanges):
                exchanges.append(self._exchange(run, stop.step))
            exchanges[i]()
            start = stop.index + 1
        run.go(start, None)
        if len(part):
            self._peers.gather(part, None if self._peers.rank else logits, self._parts)

    def _exchange(self, run: Run, step: Step) -> Callable[[], None]:
        """A function that exchanges what this step needs or made."""
        if step.op != "gather":
            (made,) = step.outputs
            return partial(self._peers.sum, run.array(made))
        (x,), (out,) = step.inputs.values(), step.outputs
        widths = self._gathered[int(step.numbers["of"])]
        # Experts have some rows for a token.
        part = run.array(x).reshape(-1, widths[self._peers.rank])
        return partial(self._peers.gather_all, part, run.room(out).reshape(len(part), -1), widths)


class _Mirror:
    """The number by which the other ranks know a State."""

    def __init__(self, ledger: _Ledger):
        self.ledger, self.number = ledger, next(ledger.numbers)

    def fork(self, pos: int) -> _Mirror:
        """The number of a copy."""
        twin = _Mirror(self.ledger)
        self.ledger.news.append((_FORK, self.number, twin.number, pos))
        return twin

    def __del__(self) -> None:
        self.ledger.news.append((_DROP, self.number, 0, 0))


class _Ledger:
    """What rank 0 has to tell: the States that were forked or freed, in their order, and passes."""

    def __init__(self) -> None:
        self.numbers = counter()
        self.news: deque[tuple[int, ...]] = deque()  # any thread may append

    def enter(self, state: State) -> None:
        """Give a State that is read for the first time its number."""
        if state.mirror is None and not state.pos:
            state.mirror = _Mirror(self)
        if not isinstance(state.mirror, _Mirror) or state.mirror.ledger is not self:
            raise ValueError(
                "this State was not read by this network, whose keys and values are in several "
                "processes: begin with new_state(), or fork() one that it has read"
            )

    def told(self, run: SplitRun) -> np.ndarray:
        """The numbers that describe a pass, and the news since the last one."""
        news = [self.news.popleft() for _ in range(len(self.news))]
        numbers = [len(news), len(run.states), len(run.tokens), len(run.logits)]
        numbers.append(-1 if run.picked is None else len(run.picked))
        for each in news:
            numbers += each
        for state, count in zip(run.states, run.counts, strict=True):
            assert isinstance(state.mirror, _Mirror)
            numbers += state.mirror.number, state.pos, state.end, count, state.chunk
        rest = [run.tokens] if run.picked is None else [run.tokens, run.picked]
        return np.concatenate([np.array(numbers, np.int64), *rest])


class Follower:
    """Computes the passes that rank 0 tells, on another rank."""

    def __init__(self, program: Program, inner: Engine, peers: Peers, shares: list[Share]):
        """Raises ValueError as SplitEngine does."""
        self.program, self._peers = program, peers
        self._pieces = Pieces(program, inner, peers, shares)
        self._states: dict[int, State] = {}

    def follow(self) -> None:
        """Compute passes until rank 0 ends."""
        while (numbers := self._peers.hear()) is not None:
            self.compute(numbers)

    def compute(self, numbers: np.ndarray) -> None:
        """Compute the pass that these numbers describe."""
        n_news, n_states, n_tokens, wanted, n_picked = numbers[:_HEAD].tolist()
        start = _HEAD + n_news * _NEWS
        for news in numbers[_HEAD:start].reshape(n_news, _NEWS).tolist():
            self._note(*news)
        rows = numbers[start : start + n_states * _STATE].reshape(n_states, _STATE).tolist()
        start += n_states * _STATE
        states = [self._state(*row) for row in rows]
        counts = [count for _, _, _, count, _ in rows]
        tokens = numbers[start : start + n_tokens].copy()
        picked = None if n_picked < 0 else numbers[start + n_tokens :][:n_picked].copy()
        logits = np.empty((wanted, 0), np.float32)
        self._pieces.compute(tokens, states, counts, logits, picked)
        for state, count in zip(states, counts, strict=True):
            state.advance(count)

    def _note(self, what: int, number: int, twin: int, pos: int) -> None:
        known = self._states.pop(number, None) if what == _DROP else self._states.get(number)
        if what == _FORK and known is not None:  # a State that has read nothing is not known
            self._states[twin] = known.fork(pos)

    def _state(self, number: int, pos: int, end: int, count: int, chunk: int) -> State:
        """The State of that number, where rank 0's is, with memory for what is read."""
        if number not in self._states:
            self._states[number] = State(self.program.config)
            self._states[number].chunk = chunk  # that of rank 0, whose heads may be fewer
        state = self._states[number]
        if pos < state.pos:
            state.truncate(pos)
        state.make_room(end - pos)
        return state
