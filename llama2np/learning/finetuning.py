"""What is trained of a network: everything, a head alone, or low-rank parts of its matrices."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llama2np.formats import loading, peft
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.huggingface.writing import as_folder
from llama2np.formats.huggingface.writing import with_labels as labelled
from llama2np.learning.heads import with_labels
from llama2np.learning.lora import TARGETS, low_rank_parameters, merged, pairs
from llama2np.learning.passes import parameters_of, shared_names
from llama2np.learning.writing import changed, source_of, tokenizer_path, write_network
from llama2np.llama import Llama
from llama2np.model.program import Program
from llama2np.model.transformer import Transformer
from llama2np.model.weights import Dense, Tensor, Weights
from llama2np.text.tokenizer import Tokenizer

StrPath = str | os.PathLike[str]
MODES = "all", "head", "lora"
_HEAD = "classifier", "classifier.bias"


@dataclass(frozen=True, slots=True)
class LowRank:
    """The numbers of LoRA: W + alpha / rank B A for the targets in each layer."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS

    @property
    def scale(self) -> float:
        """The factor of B A."""
        return self.alpha / self.rank


@dataclass(slots=True)
class Finetuning:
    """A model that is trained further.

    program and parameters are for a `Trainer`, together with `options`. mode: "all"; "head", which
    leaves all but the head frozen; or "lora", which trains low-rank parts (and a head for labels).
    labels: of a new head, () for the network's own. Raises ValueError, CheckpointError,
    TokenizerError and OSError.
    """

    path: StrPath
    mode: str = "all"
    labels: tuple[str, ...] = ()
    low_rank: LowRank = field(default_factory=LowRank)
    named_tokenizer: StrPath | None = None
    seed: int = 0
    program: Program = field(init=False)
    parameters: dict[str, np.ndarray] = field(init=False)
    tokenizer: Tokenizer = field(init=False)
    options: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {self.mode!r}")
        loaded = loading.load(self.path)
        program = loading.transformer(self.path, "numpy", loaded).program
        if loaded.config.n_labels:
            raise CheckpointError(f"{self.path}: has a head for labels: use the model before it")
        self.program = with_labels(program, len(self.labels)) if self.labels else program
        self.tokenizer = loaded.tokenizer(self.named_tokenizer)
        self.options = {}
        if self.mode == "all":
            self.parameters = parameters_of(self.program)
        elif self.mode == "head":
            self.parameters = parameters_of(self.program, lambda name: name in _HEAD)
        else:
            self.parameters = parameters_of(self.program, _HEAD[:1]) if self.labels else {}
            chosen = self.low_rank.rank, self.low_rank.targets, self.seed
            self.parameters |= low_rank_parameters(self.program, *chosen)
            self.options = {"lora_scale": self.low_rank.scale}
        if not self.parameters:
            raise ValueError("the head is tied to the embedding, so that it is not trained alone")

    def check_writable(self) -> None:
        """Raise CheckpointError now, and not after the training, if `write` will do so."""
        source = source_of(self.path)
        if source.original is None:
            as_folder(source, "float32")

    def llama(self, engine: str = "compiled") -> Llama:
        """The trained network with its tokenizer, low-rank parts merged; it shares the arrays.

        Raises ValueError for a network with a head for labels.
        """
        if self.labels:
            raise ValueError("a network with a head for labels writes no text: use write")
        values, old = merged(self.program, self.parameters, self.low_rank.scale), self.program
        first = shared_names(old)
        made = {
            name: _tensor(values[name]) if name in values else tensor
            for name, tensor in old.weights.items()
        }
        tensors = {name: made[first[name]] for name in made}  # a tied head stays tied
        network = Transformer(old.config, Weights(tensors), old.describe, engine)
        return Llama(network, self.tokenizer)

    def write(self, folder: StrPath) -> list[Path]:
        """Write the trained network to a folder, with low-rank parts merged; return its files."""
        values = merged(self.program, self.parameters, self.low_rank.scale)
        head = values.pop("classifier") if self.labels else None
        source = changed(source_of(self.path), values)
        if head is not None:
            source = labelled(source, head, self.labels)
        return write_network(source, folder, tokenizer_path(self.path, self.named_tokenizer))

    def write_adapter(self, folder: StrPath) -> None:
        """Write low-rank parts as PEFT's files. Raises ValueError for another mode."""
        if self.mode != "lora" or self.labels:
            raise ValueError("an adapter is what lora trains for texts; this network has more")
        family = loading.load(self.path).family or "llama"
        peft.write_adapter(
            folder,
            pairs(self.parameters),
            self.low_rank.alpha,
            self.program.config,
            family,
            os.fspath(self.path),
        )


def _tensor(array: np.ndarray) -> Tensor:
    return Dense(array) if array.ndim == 2 else array
