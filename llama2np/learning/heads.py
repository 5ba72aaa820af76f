"""A network whose head gives logits of labels in place of tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from llama2np.learning.gradients import program_of
from llama2np.model.program import Program
from llama2np.model.weights import Dense, Tensor, Weights


def with_labels(model: Any, n_labels: int, bias: bool = False) -> Program:
    """The program of a decoder with a new head (n_labels, dim), and a bias if wanted, all 0.

    It reads the last hidden state after the final norm, as transformers' *ForSequenceClassification
    does (without a bias); with Batch.labels, that of the last token of each sequence. Raises
    ValueError for fewer than two labels, and for a network without logits.
    """
    program = program_of(model)
    if n_labels < 2:
        raise ValueError(f"a classifier needs two labels or more, not {n_labels}")
    if not program.has_logits:
        raise ValueError(f"{program.config.architecture}: a network without logits of tokens")
    tensors: dict[str, Tensor] = dict(program.weights)
    tensors.pop("classifier.bias", None)
    tensors["classifier"] = Dense(np.zeros((n_labels, program.config.dim), np.float32))
    if bias:
        tensors["classifier.bias"] = np.zeros(n_labels, np.float32)
    config = replace(program.config, n_labels=n_labels, logit_softcap=0.0)
    return Program(config, Weights(tensors), program.describe)
