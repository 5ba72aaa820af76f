"""A network as a flat list of steps.

A description (architectures.py) is a function that reads like the forward pass. It is called once,
with a `Block` (block.py) whose methods compute nothing but record a `Step` each. The list is used
by both engines, by hooks, by `inspect --steps` and by the benchmarks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

from llama2np.model.block import Block, Describe, Step, Value
from llama2np.model.config import Config
from llama2np.model.weights import Matrix, Weights, described

__all__ = ["Block", "Describe", "Program", "Step", "Value", "multiply_adds"]


@dataclass(frozen=True, eq=False, repr=False)
class Program:
    """The steps of a network, with its config and weights.

    Raises ValueError for weights that the description does not fit, or does not use.
    """

    config: Config
    weights: Weights
    describe: Describe
    steps: tuple[Step, ...] = field(init=False)

    def __post_init__(self) -> None:
        b = Block(self.config, self.weights)
        self.describe(b, self.config)
        unused = [name for name in self.weights if name not in b.used]
        if unused:
            raise ValueError(f"the network does not use {described(unused[0])}")
        ends = [step.op == "logits" for step in b.steps]
        if not ends or any(ends[:-1]):
            raise ValueError("a description must have steps, and logits only at its end")
        object.__setattr__(self, "steps", tuple(b.steps))

    def __str__(self) -> str:
        """The table of the steps."""
        from llama2np.model.listing import table

        return table(self)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all values, in the order in which they are first made."""
        return tuple(dict.fromkeys(v.name for step in self.steps for v in step.outputs if v.name))

    @property
    def output(self) -> Value:
        """The output of the last step."""
        return self.steps[-1].outputs[0]

    @property
    def has_logits(self) -> bool:
        """Whether the last step computes logits, which is done only for some of the rows."""
        return self.steps[-1].op == "logits"

    @cached_property  # each pass needs it
    def work(self) -> int:
        """Multiply-adds of the matrix products for one token."""
        return sum(multiply_adds(self, step) for step in self.steps)

    def __repr__(self) -> str:
        return f"Program({len(self.steps)} steps; print it to see them)"

    def matrix(self, name: str) -> Matrix:
        """The matrix of that name."""
        return self.weights[name]  # type: ignore[return-value]  # the shapes have been checked

    def matrices(self, step: Step) -> list[Matrix]:
        """The matrices of a linear step or of the logits."""
        return [self.matrix(name) for name in step.weights.get("w", ())]


def multiply_adds(program: Program, step: Step) -> int:
    """The multiply-adds of a step's matrix products for one token; 0 without matrices."""
    if "used" in step.numbers:  # experts, which are equal in shape
        one = sum(math.prod(program.weights[names[0]].shape) for names in step.weights.values())
        return one * int(step.numbers["used"])
    return sum(math.prod(matrix.shape) for matrix in program.matrices(step))
