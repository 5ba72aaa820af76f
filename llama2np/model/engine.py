"""What a Transformer needs of an engine. There are two: kernels/engine.py and numpy_engine.py."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from llama2np.model.program import Program, Value
from llama2np.model.state import State


class Run(Protocol):
    """One pass of some rows through the program, in one piece or step by step."""

    def go(self, start: int = 0, stop: int | None = None) -> None:
        """Compute the steps start ... stop - 1 of the program; None: to the end."""

    def array(self, value: Value) -> np.ndarray:
        """What a step that was just computed made: (rows, width), which may be changed in place."""

    def put(self, value: Value, array: np.ndarray) -> None:
        """Set a value as if its step had been computed. array: (rows, width)."""


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
    ) -> Run:
        """Prepare a pass of rows of one or more sequences; nothing is computed yet.

        tokens: (laps * rows,) int64; counts: the rows of each state, in their order; each State has
        reserved room and is at the position of its first row. logits: (laps * wanted, vocab_size)
        float32, to be filled; picked: (wanted,) int64, the rows whose logits they are (None: the
        last ones). laps: with more than 1, further passes follow, each with the token that is most
        likely after the one before, which is put into `tokens`.
        """
