"""Dropout (Srivastava et al. 2014): while training, a part of what a branch computes becomes 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llama2np.learning.passes import Pass
    from llama2np.model.program import Step

# Where it applies: the embedding, and what each branch adds to the residual stream. llama2.c's
# model.py has it at the attention weights, too.
POINTS = "embedding", "attn_out", "mlp_out"


@dataclass(frozen=True, slots=True)
class Dropout:
    """Each value at POINTS becomes 0 with probability `rate`, else it is divided by 1 - rate.

    The random numbers follow from (seed, turn) and the step of the program, in a stream of their
    own (Philox, Salmon et al. 2011): the backward pass, and a pass that is computed again, make the
    same ones, and nothing has to be kept. turn: numbers that differ in each pass.
    """

    rate: float
    seed: int
    turn: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ValueError(f"dropout must be from 0 to less than 1, not {self.rate}")

    def apply(self, step: Step, arrays: Sequence[np.ndarray], run: Pass) -> tuple[np.ndarray, ...]:
        """The outputs of a step with dropout, or the derivatives by them: the map is linear."""
        if not self.rate or not any(value.name in POINTS for value in step.outputs):
            return tuple(arrays)
        key = np.random.SeedSequence([self.seed, *self.turn, run.number_of(step)])
        random, made = np.random.Generator(np.random.Philox(key)), []
        for value, array in zip(step.outputs, arrays, strict=True):
            if value.name not in POINTS:
                made.append(array)
                continue
            kept = random.random(array.shape, np.float32) >= self.rate
            made.append(array * (kept * array.dtype.type(1 / (1 - self.rate))))
        return tuple(made)
