"""The interface of an engine. There are two engines: kernels/engine.py and numpy_engine.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from llama2np.model.program import Program, Value
from llama2np.model.state import State

# How the compiled engine rounds the inputs of matrices in GGUF's blocks: each row to int8, in
# groups of 32 with a scale, or to a sum of two such rows, which is nearly exact.
ACTIVATIONS = ("int8", "int8x2")


class Run(Protocol):
    """One pass of some rows through the program, as a whole or step by step.

    exchanges: what several processes exchange between its pieces (split_engine.py).
    """

    exchanges: list[Callable[[], None]]

    def go(self, start: int = 0, stop: int | None = None) -> None:
        """Compute the steps start ... stop - 1 of the program; None means to the end."""

    def array(self, value: Value) -> np.ndarray:
        """The output of a step just computed: (rows, width), which may be changed in place."""

    def put(self, value: Value, array: np.ndarray) -> None:
        """Set a value as if its step had been computed. array: (rows, width)."""

    def room(self, value: Value) -> np.ndarray:
        """Memory for a value, (rows, width), which is filled instead of computing its step."""


class Engine(Protocol):
    """Computes the steps of a Program."""

    program: Program

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
    ) -> Run:
        """Prepare a pass of rows of one or more sequences; nothing is computed yet.

        tokens: (laps * rows,) int64; counts: the number of rows of each state, in their order. Each
        State has reserved memory, and its position is that of its first row. logits: (laps *
        wanted, vocab_size) float32, the output; picked: (wanted,) int64, the rows for which logits
        are computed; None means the last ones. laps: the number of passes. Each further pass reads
        the most probable token after the previous one, and writes it into `tokens`. types: (rows,)
        int64, the token types of an encoder; None means 0. positions: (rows,) int64, the learned
        positions of an encoder's tokens; None means that they follow from the States.
        """
