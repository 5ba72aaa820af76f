"""loss_and_gradients: how well a network predicts a batch, and in which direction it improves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from llama2np.learning.batch import Batch
from llama2np.learning.loss import Loss, cross_entropy
from llama2np.learning.passes import Parameters, Pass, parameters_of
from llama2np.model.program import Program


class Gradients(NamedTuple):
    """The mean loss in nats per target, and its gradient by each parameter, in its shape."""

    loss: float
    gradients: dict[str, np.ndarray]


def loss_and_gradients(
    model: Any,
    tokens: np.ndarray | Sequence[Sequence[int]],
    lengths: np.ndarray | Sequence[int] | None = None,
    *,
    parameters: Parameters | None = None,
    recompute: bool = False,
) -> Gradients:
    """The mean cross entropy of the next token over a batch, and its gradients.

    model: a Llama, a Transformer or a Program; one without a head for tokens is refused. tokens:
    (B, T), padded at the right; lengths: (B,), by default T. parameters: {name: float32 array}, the
    tensors to be trained, which take the place of the model's; by default copies of all of its
    own. The gradients have the same names; that of a tied classifier is part of the embedding's.
    recompute: save memory, see `Pass`. Raises ValueError for tokens outside the vocabulary, for
    lengths that do not fit, and for a batch with nothing to predict.
    """
    program = program_of(model)
    batch = Batch.next_tokens(np.asarray(tokens), None if lengths is None else np.asarray(lengths))
    parameters = parameters_of(program) if parameters is None else parameters
    loss, gradients = batch_gradients(program, parameters, batch, recompute=recompute)
    return Gradients(loss.total / loss.count, gradients)


def batch_gradients(
    program: Program, parameters: Parameters, batch: Batch, factor: float = 0.0, **options: Any
) -> tuple[Loss, dict[str, np.ndarray]]:
    """The loss of a batch, and the gradients of loss.total * factor; 0: 1 / batch.weight.

    options: those of `Pass`.
    """
    batch.check(program.config.vocab_size, program.config.seq_len, program.output.width)
    run = Pass(program, parameters, batch, **options)
    hidden = run.forward()
    loss = cross_entropy(run, hidden, factor or 1 / batch.weight)
    assert loss.by_hidden is not None
    gradients = run.backward(loss.by_hidden)
    return loss, {
        name: gradients[name] if name in gradients else np.zeros_like(array)
        for name, array in parameters.items()
    }


def batch_loss(program: Program, parameters: Parameters, batch: Batch, **options: Any) -> Loss:
    """The loss of a batch alone."""
    batch.check(program.config.vocab_size, program.config.seq_len, program.output.width)
    run = Pass(program, parameters, batch, keep=False, **options)
    return cross_entropy(run, run.forward())


def program_of(model: Any) -> Program:
    """The program of a Llama, of a Transformer, or itself. Raises ValueError for anything else."""
    program = getattr(getattr(model, "transformer", model), "program", model)
    if not isinstance(program, Program):
        raise ValueError(f"expected a Llama, a Transformer or a Program, not {type(model)}")
    return program
