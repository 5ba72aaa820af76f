"""The forward pass: from tokens to logits. This module has no text and no files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import numpy as np

from llama2np.arguments import function, whole, wrong
from llama2np.model import hooks as hooking
from llama2np.model import rope
from llama2np.model.config import Config
from llama2np.model.engine import ACTIVATIONS, Engine
from llama2np.model.hooks import Hook
from llama2np.model.networks import description
from llama2np.model.program import Describe, Program, Step
from llama2np.model.state import State
from llama2np.model.weights import Weights
from llama2np.output import brief
from llama2np.owner import Owner

__all__ = ["BLOCK", "State", "Transformer"]

# A prompt is read in blocks of this many tokens: enough to keep the matrix products busy.
BLOCK = 256

# The most multiply-adds and tokens in one call of `greedy`: 10 to 20 milliseconds.
_GREEDY_WORK, _GREEDY_TOKENS = 2**27, 16


class Transformer:
    """A network: the description of its steps, its weights, and an engine that computes them.

    It is read-only: any number of States can run through it. describe: a description such as
    `architectures.llama`, by default that of config.architecture; engine: "compiled" (numba),
    "numpy" (slow, without numba), or a function that makes an Engine for a Program. activations:
    how the compiled engine rounds the inputs of matrices in GGUF's blocks, "int8" or "int8x2"
    (nearly exact). Raises ValueError for weights whose shapes differ from those of `config`.
    """

    def __init__(
        self,
        config: Config,
        weights: Weights,
        describe: Describe | None = None,
        engine: str | Callable[[Program], Engine] = "compiled",
        activations: str = ACTIVATIONS[0],
    ):
        for name, value, kind in (("config", config, Config), ("weights", weights, Weights)):
            if not isinstance(value, kind):
                raise wrong(name, f"of type {kind.__name__}", value)
        self._weights = weights
        describe = description(config) if describe is None else describe
        self._program = Program(config, weights.own(), describe)
        engine = "compiled" if engine is None else engine
        if isinstance(engine, str):
            self._engine = make_engine(engine, self._program, activations)
        else:
            self._engine = function("engine", engine, "a Program, or a name")(self._program)
        self._engine_name, self._activations = engine, activations
        self._hooks: tuple[Hook, ...] = ()
        self._visits = hooking.Visits()

    @property
    def config(self) -> Config:
        """The shape of the network."""
        return self._program.config

    @property
    def weights(self) -> Weights:
        """The tensors of the network. They cannot be replaced: the engine has their addresses."""
        return self._weights

    @property
    def program(self) -> Program:
        """The steps of the network; print(program) shows them."""
        return self._program

    @property
    def activations(self) -> str:
        """How the compiled engine rounds the inputs of matrices in GGUF's blocks."""
        return self._activations

    @property
    def hooks(self) -> tuple[Hook, ...]:
        """The hooks of this network, in the order of their calls."""
        return self._hooks

    @property
    def max_greedy_tokens(self) -> int:
        """How many tokens one call of `greedy` should read; 1 if it cannot be used."""
        # A subclass, or an assignment, may override it.
        own = getattr(self.forward, "__func__", None)
        c = self.config
        if self._hooks or own is not Transformer.forward or rope.depends_on_length(c):
            return 1
        if c.outputs_here:  # other processes compute a part of each pass
            return 1
        return max(min(_GREEDY_WORK // max(self._program.work, 1), _GREEDY_TOKENS), 1)

    def __reduce__(self) -> tuple[object, ...]:
        """Copies and pickles get a new engine, since this one has the addresses of these arrays."""
        p = self._program
        arguments = p.config, self._weights, p.describe, self._engine_name, self._activations
        return _remade, (type(self), arguments, self._hooks)

    def __repr__(self) -> str:
        c = self.config
        return (
            f"{type(self).__name__}({c.n_layers} layers of dim {c.dim}, {c.n_heads} heads, "
            f"context {c.seq_len:,}, vocabulary {c.vocab_size:,})"
        )

    def with_hooks(self, hooks: Sequence[Hook]) -> Transformer:
        """The same network, with `hooks` after its present ones.

        Raises ValueError for a name or a layer that the network does not have.
        """
        for hook in hooks:
            if not all(hasattr(hook, name) for name in ("names", "layers", "visit")):
                raise wrong("a hook", "a Trace, an Edit or what has names, layers and visit", hook)
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._hooks = (*self._hooks, *hooks)
        twin._visits = hooking.visits_of(twin._hooks, self._program)
        return twin

    def forward(
        self, tokens: Sequence[int] | np.ndarray, state: State, all_logits: bool = False
    ) -> np.ndarray:
        """Read `tokens` (T,) from state.pos on; return the logits after the last of them.

        Returns a new float32 array (vocab_size,), or with `all_logits` (T, vocab_size) for every
        token; a network that classifies texts has n_labels in place of vocab_size. Raises
        ValueError for a token outside the vocabulary, for no tokens, for more than fit into the
        context, and for a State that is being read already.
        """
        with _owner_of(state):
            tokens = self._checked(tokens, state)
            count, width = len(tokens), self.config.n_outputs
            logits = np.empty((count if all_logits else 1, width), np.float32)
            state.make_room(count)
            for start in range(0, count, BLOCK):
                block = tokens[start : start + BLOCK]
                last = start + len(block) == count
                # The rows for this block: all of its own, or one for the last block, else none.
                wanted = logits[start:][: len(block)] if all_logits else logits[: int(last)]
                state.append(block)
                run = self._engine.run(block, [state], [len(block)], wanted)
                if self._hooks:
                    hooking.go(run, self._program, self._visits, state, len(block), wanted)
                else:
                    run.go()
                state.advance(len(block))
        return logits if all_logits else logits[0]

    def must_reread(self, state: State, count: int) -> bool:
        """Whether `count` more tokens change the rotation of those that `state` has read.

        This is so where longrope begins to use its long factors. `forward` keeps the old keys, as
        transformers' does; generation reads the whole text again, as transformers' generate does.
        """
        scaling = self.config.rope_scaling
        if scaling is None or scaling.short_factors == scaling.long_factors:
            return False  # not longrope, or a list of divisors for all lengths
        return 0 < state.pos <= scaling.original_len < state.pos + count

    def forward_rows(
        self, pieces: Sequence[Sequence[int] | np.ndarray], states: Sequence[State]
    ) -> np.ndarray:
        """Read pieces[i] from states[i].pos on, all in one pass; return the logits after each.

        Returns float32 logits (len(states), vocab_size). Each row is equal to the bit to the result
        of `forward` for that sequence alone. Raises ValueError as `forward` does, and for a State
        that occurs twice; then no State has changed.
        """
        if len(pieces) != len(states) or not states:
            raise ValueError(f"{len(pieces)} pieces for {len(states)} states")
        with ExitStack() as stack:
            for state in states:
                stack.enter_context(_owner_of(state))
            rows = [self._checked(p, s) for p, s in zip(pieces, states, strict=True)]
            for state, some in zip(states, rows, strict=True):
                state.make_room(len(some))
            if not self._hooks:
                return self._rows(rows, list(states))
        # Each sequence alone: the bits are the same, and hooks get arrays of one sequence.
        return np.stack([self.forward(r, s) for r, s in zip(rows, states, strict=True)])

    def _rows(self, rows: list[np.ndarray], states: list[State]) -> np.ndarray:
        """`forward_rows` for arguments that have been checked."""
        counts = [len(some) for some in rows]
        logits = np.empty((len(states), self.config.n_outputs), np.float32)
        for state, some in zip(states, rows, strict=True):
            state.append(some)
        picked = np.cumsum(counts) - 1
        self._engine.run(np.concatenate(rows), states, counts, logits, picked).go()
        for state, count in zip(states, counts, strict=True):
            state.advance(count)
        return logits

    def greedy(self, token: int, state: State, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Read `token` at state.pos, then `count` - 1 more, each the most probable next token.

        Returns the tokens read, (count,) int64, and the logits after each, (count, vocab_size)
        float32. They are equal to the bit to those of `forward` for one token after the other, but
        without Python's overhead, which for a small network equals the computation.
        `max_greedy_tokens` is a good count. Raises ValueError as `forward` does, and for a network
        with hooks.
        """
        with _owner_of(state):
            if self._hooks:
                raise ValueError("greedy: a network with hooks must use forward, token by token")
            count = whole("count", count, 0)
            tokens = self._checked(np.full(count, whole("token", token)), state)
            logits = np.empty((count, self.config.n_outputs), np.float32)
            state.make_room(count)
            self._engine.run(tokens, [state], [1], logits, laps=count).go()
            state.append(tokens)
            state.advance(count)
        return tokens, logits

    def step_seconds(self, repeats: int = 20) -> list[float]:
        """The seconds of each step of the program for one token: the median of `repeats` runs.

        Each step is called separately, which adds some microseconds in the compiled engine.
        """
        state, found = State(self.config), []
        state.make_room(1)
        tokens, logits = np.zeros(1, np.int64), np.empty((1, self.config.n_outputs), np.float32)
        for _ in range(repeats + 1):
            run, moments = self._engine.run(tokens, [state], [1], logits), [time.perf_counter()]
            for i in range(len(self._program.steps)):
                run.go(i, i + 1)
                moments.append(time.perf_counter())
            found.append(np.diff(moments))
        return [float(each) for each in np.median(found[1:], axis=0)]  # the first one is a warm-up

    def walk(
        self, tokens: Sequence[int] | np.ndarray, state: State | None = None
    ) -> Iterator[tuple[Step, dict[str, np.ndarray]]]:
        """Read `tokens` (T,) step by step: yield each step after it is computed, with its outputs.

        The outputs are {name: array (T, width)}; the arrays may be changed in place. T is at most
        BLOCK. state: by default an empty one. Raises ValueError as `forward` does.
        """
        state = State(self.config) if state is None else state
        with _owner_of(state):
            tokens = self._checked(tokens, state)
            if len(tokens) > BLOCK:
                raise ValueError(f"walk: {len(tokens)} tokens, expected at most {BLOCK}")
            logits = np.empty((len(tokens), self.config.n_outputs), np.float32)
            state.make_room(len(tokens))
            state.append(tokens)
            run = self._engine.run(tokens, [state], [len(tokens)], logits)
            for i, step in enumerate(self._program.steps):
                run.go(i, i + 1)
                yield step, {value.name: run.array(value) for value in step.outputs}
            state.advance(len(tokens))

    def unembed(self, x: np.ndarray) -> np.ndarray:
        """The logits if x (T, dim) were the residual stream after the last block.

        This applies the final norm and the classifier: float32 logits (T, vocab_size).
        """
        steps, state = self._program.steps, State(self.config)
        first = max(i for i, step in enumerate(steps) if step.layer is not None) + 1
        (stream,) = steps[first].inputs.values()
        logits = np.empty((len(x), self.config.n_outputs), np.float32)
        for start in range(0, len(x), BLOCK):
            rows = logits[start : start + BLOCK]
            run = self._engine.run(np.zeros(len(rows), np.int64), [state], [len(rows)], rows)
            run.put(stream, x[start : start + BLOCK])
            run.go(first)
        return logits

    def _checked(self, tokens: Sequence[int] | np.ndarray, state: State) -> np.ndarray:
        """Check `tokens` and `state`: the engines rely on it."""
        tokens = np.asarray(tokens)
        if tokens.ndim != 1 or not tokens.size or tokens.dtype.kind not in "iu":
            raise ValueError(
                f"tokens must be one or more integers in a row, not {brief(tokens.tolist())}"
            )
        tokens = tokens.astype(np.int64)  # a copy, so that the kernels get one type of array
        # As an unsigned number, -1 is the largest. A single token, the usual case, needs no max.
        worst = int(tokens.view(np.uint64).argmax()) if tokens.size > 1 else 0
        if not 0 <= tokens[worst] < self.config.vocab_size:
            most = self.config.vocab_size - 1
            raise ValueError(f"token {tokens[worst]} is not in the vocabulary of 0 to {most}")
        if state.config is not self.config and state.config != self.config:
            raise ValueError("the state was made for a model of another shape")
        return tokens


def _owner_of(state: State) -> Owner:
    if not isinstance(state, State):
        raise wrong("state", "a State", state)
    return state.owner


def make_engine(name: str, program: Program, activations: str = ACTIVATIONS[0]) -> Engine:
    """Make an engine by its name. Only "compiled" imports numba: the package works without it."""
    if activations not in ACTIVATIONS:
        legal = " or ".join(map(repr, ACTIVATIONS))
        raise ValueError(f"activations must be {legal}, not {activations!r}")
    if name == "compiled":
        try:
            from llama2np.kernels.engine import CompiledEngine
        except ImportError as error:
            raise ValueError(f"{error}: engine='numpy' works without numba, but slowly") from None
        return CompiledEngine(program, activations)
    if name == "numpy":
        from llama2np.model.numpy_engine import NumpyEngine

        return NumpyEngine(program)
    raise ValueError(f"engine must be 'compiled' or 'numpy', not {name!r}")


def _remade(
    kind: type[Transformer], arguments: tuple[object, ...], hooks: Sequence[Hook]
) -> Transformer:
    made = kind(*arguments)  # type: ignore[arg-type]
    return made.with_hooks(hooks) if hooks else made
