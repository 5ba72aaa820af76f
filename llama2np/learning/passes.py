"""A pass over the list of steps of a network: forward, then backward.

The backward pass is reverse-mode differentiation (Linnainmaa 1970; Baydin et al. 2018): it takes
the steps in the opposite order, and gives each input of a step the derivative of the loss by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from llama2np.learning.batch import Batch
from llama2np.learning.dropout import Dropout
from llama2np.learning.ops import OPS
from llama2np.model.program import Program, Step, Value
from llama2np.model.weights import as_array

Parameters = Mapping[str, np.ndarray]


class Pass:
    """One batch on its way through a program.

    parameters: the arrays to be trained, by the names of the program's tensors; of a shared tensor
    (a tied classifier) only the first name. They take the place of the program's own; all other
    tensors are frozen, and may be of any number format. Each layer may also have low-rank parts
    (see lora.py). keep: keep what a backward pass needs. recompute: keep only what enters a block,
    and compute its inside again on the way back: less memory, a third more time.
    """

    def __init__(
        self,
        program: Program,
        parameters: Parameters,
        batch: Batch,
        *,
        keep: bool = True,
        recompute: bool = False,
        dropout: Dropout | None = None,
        lora_scale: float = 1.0,
    ):
        self.program, self.parameters, self.batch = program, parameters, batch
        self.dropout, self.lora_scale = dropout, lora_scale
        self.values: dict[Value, np.ndarray] = {}
        self.saved: dict[Step, Any] = {}  # what an op keeps beside its inputs and outputs
        self.gradients: dict[str, np.ndarray] = {}
        self._of: dict[Value, np.ndarray] = {}  # the derivatives by values
        self._names = shared_names(program)
        self._keep, self._recompute = keep, keep and recompute
        self._steps = [step for step in program.steps if step.op != "logits"]
        self._wanted = self._depending()
        self._blocks = _blocks(self._steps)
        self._numbers = {step: i for i, step in enumerate(program.steps)}
        self._last_read = {v: i for step, i in self._numbers.items() for v in step.inputs.values()}
        if not program.has_logits:  # the result is read at the end
            self._last_read[program.output] = len(program.steps)

    # What the ops read

    def inputs(self, step: Step) -> list[Any]:
        """The arrays that a step reads, in their order: (B * T, width).

        On the way back, None for those that its op does not keep.
        """
        return [self.values.get(value) for value in step.inputs.values()]

    def weight(self, name: str) -> np.ndarray:
        """A tensor as float32, or in the type of the trained array."""
        name = self._names[name]
        if name in self.parameters:
            return self.parameters[name]
        return as_array(self.program.weights[name])

    def weights(self, step: Step, kind: str) -> list[np.ndarray | None]:
        """The tensors of a step; None for a bias that is not there."""
        return [self.weight(name) if name else None for name in step.weights.get(kind, ())]

    def rows_of(self, name: str, ids: np.ndarray) -> np.ndarray:
        """The rows `ids` (n,) of a table, without expanding the others."""
        name = self._names[name]
        trained = self.parameters.get(name)
        rows = self.program.matrix(name).rows(ids) if trained is None else trained[ids]
        return np.asarray(rows)

    def trains(self, name: str) -> bool:
        """Whether the tensor is trained itself."""
        return bool(name) and self._names[name] in self.parameters

    def number_of(self, step: Step) -> int:
        """The place of a step in the program."""
        return self._numbers[step]

    def lora(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """The low-rank part of a matrix (d, n): A (r, n) and B (d, r), or None."""
        a = self.parameters.get(f"{name}.lora_A")
        return None if a is None else (a, self.parameters[f"{name}.lora_B"])

    def wants(self, value: Value) -> bool:
        """Whether the derivative by a value is needed: something trained comes before it."""
        return value in self._wanted

    def give(self, name: str, gradient: np.ndarray) -> None:
        """Add to the gradient of a trained array. The array becomes the pass's own."""
        name = self._names.get(name, name)
        before = self.gradients.get(name)
        if before is None:
            self.gradients[name] = gradient
        else:
            before += gradient

    def put(self, name: str, array: np.ndarray) -> None:
        """Set an `input` of the program, by its name: (B * T, width)."""
        self.values |= {
            value: array
            for step in self.program.steps
            for value in step.outputs
            if step.op == "input" and value.name == name
        }

    # The two passes

    def forward(self) -> np.ndarray:
        """Compute all steps but the logits; return the last value: (B * T, width)."""
        with np.errstate(over="ignore", under="ignore"):  # exp of a large number: a share of 0
            for block in self._blocks:
                self._compute(block)
                self._drop(block, inside=self._recompute)
        last = self.program.steps[-1]
        value = next(iter(last.inputs.values())) if self.program.has_logits else last.outputs[0]
        return self.values[value]

    def backward(self, by_last: np.ndarray) -> dict[str, np.ndarray]:
        """From the derivative by the last value (B * T, width): the gradients of the parameters."""
        last = self.program.steps[-1]
        value = next(iter(last.inputs.values())) if self.program.has_logits else last.outputs[0]
        self._of[value], self._type = by_last, by_last.dtype
        for block in reversed(self._blocks):
            if not any(self.wants(v) for step in block for v in step.outputs):
                continue
            if self._recompute:
                with np.errstate(over="ignore", under="ignore"):
                    self._compute(block)
            for step in reversed(block):
                self._back(step)
        return self.gradients

    def gradient_of(self, value: Value) -> np.ndarray | None:
        """The derivative by a value, after the backward pass; for an `input` of the program."""
        return self._of.get(value)

    def _compute(self, block: list[Step]) -> None:
        for step in block:
            if step.op == "input":
                continue  # it has been put
            made = OPS[step.op].forward(step, self)
            if self.dropout is not None:
                made = self.dropout.apply(step, made, self)
            self.values.update(zip(step.outputs, made, strict=True))

    def _back(self, step: Step) -> None:
        got = [self._of.pop(value, None) for value in step.outputs]
        if step.op == "input":
            self._of.update({v: g for v, g in zip(step.outputs, got, strict=True) if g is not None})
            return
        if any(g is not None for g in got) and any(map(self.wants, step.outputs)):
            count = self.batch.tokens.size
            by_outputs: Sequence[np.ndarray] = [
                np.zeros((count, value.width), self._type) if g is None else g
                for value, g in zip(step.outputs, got, strict=True)
            ]
            if self.dropout is not None:
                by_outputs = self.dropout.apply(step, by_outputs, self)
            by_inputs = OPS[step.op].backward(step, self, *by_outputs)
            for value, g in zip(step.inputs.values(), by_inputs, strict=True):
                if g is not None and self.wants(value):
                    before = self._of.get(value)
                    # Not in place: the array may be the derivative by another value, too.
                    self._of[value] = g if before is None else before + g
        self.saved.pop(step, None)
        for value in step.outputs:
            self.values.pop(value, None)

    def _depending(self) -> set[Value]:
        """The values that depend on a parameter."""
        if not self._keep:
            return set()
        found: set[Value] = set()
        for step in self.program.steps:
            names = [name for some in step.weights.values() for name in some if name]
            trained = any(self.trains(name) or self.lora(name) is not None for name in names)
            if step.op == "input" or trained or any(v in found for v in step.inputs.values()):
                found |= set(step.outputs)
        return found

    def _drop(self, block: list[Step], inside: bool) -> None:
        """Forget values that no later step reads, and that the backward pass does not need.

        inside: also forget what is needed only inside the block, which is recomputed.
        """
        end, kept = self._numbers[block[-1]], set[Value]()
        for step in block:
            if step.op == "input" or inside or not any(map(self.wants, step.outputs)):
                self.saved.pop(step, None)
                continue
            op = OPS[step.op]
            kept |= {value for name, value in step.inputs.items() if name in op.keeps}
            kept |= set(step.outputs) if op.keeps_outputs else set()
        for step in block:
            of_others = () if self._keep else step.inputs.values()
            for value in (*step.outputs, *of_others):
                if self._last_read.get(value, 0) <= end and value not in kept:
                    self.values.pop(value, None)


def shared_names(program: Program) -> dict[str, str]:
    """{name of a tensor: the first name of the same tensor}: a tied classifier's is "embedding"."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(t), name) for name, t in program.weights.items()}


def parameters_of(
    program: Program, wanted: Callable[[str], bool] | Iterable[str] | None = None
) -> dict[str, np.ndarray]:
    """Copies of the tensors to be trained, float32, by their names; by default of all.

    wanted: their names, or a function of a name. A shared tensor occurs once.
    """
    names = dict.fromkeys(shared_names(program).values())
    if callable(wanted):
        names = dict.fromkeys(filter(wanted, names))
    elif wanted is not None:
        names = dict.fromkeys(wanted)
    return {name: np.array(as_array(program.weights[name]), np.float32) for name in names}


def _blocks(steps: list[Step]) -> list[list[Step]]:
    """The steps, cut where the layer changes."""
    found: list[list[Step]] = []
    for step in steps:
        if not found or found[-1][-1].layer != step.layer:
            found.append([])
        found[-1].append(step)
    return found
