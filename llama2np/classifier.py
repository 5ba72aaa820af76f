"""Classifier: a decoder with a head for labels, and its tokenizer."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np

from llama2np.decoding.logits import log_softmax
from llama2np.formats import loading
from llama2np.formats.checkpoint import CheckpointError
from llama2np.model.config import Config
from llama2np.model.transformer import State, Transformer
from llama2np.text.tokenizer import Tokenizer

_BATCH = 16  # texts that are read together


class Classifier:
    """A network that gives labels to texts, such as `finetune --task classify` writes.

    >>> model = Classifier.load("reviews")
    >>> model.classify(["A charming film."])
    [{'bad': 0.1, 'good': 0.9}]
    """

    def __init__(self, transformer: Transformer, tokenizer: Tokenizer, labels: Sequence[str] = ()):
        if not transformer.config.n_labels:
            raise ValueError("this network has no head for labels: zero_shot needs none")
        self.transformer, self.tokenizer = transformer, tokenizer
        self.labels = tuple(labels) or tuple(
            f"LABEL_{i}" for i in range(transformer.config.n_labels)
        )

    @property
    def config(self) -> Config:
        """The shape of the network."""
        return self.transformer.config

    def __repr__(self) -> str:
        return f"Classifier({', '.join(self.labels)})"

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        tokenizer: str | os.PathLike[str] | None = None,
        engine: str = "compiled",
        activations: str | None = None,
    ) -> Classifier:
        """Open a folder of a ...ForSequenceClassification of a decoder.

        The arguments are those of Llama.load. Raises CheckpointError for another network,
        TokenizerError and OSError.
        """
        loaded = loading.load(path)
        if not loaded.config.n_labels:
            raise CheckpointError(f"{path}: a network without labels; Llama.load opens it")
        network = loading.transformer(path, engine, loaded, activations)
        return cls(network, loaded.tokenizer(tokenizer), loaded.labels)

    def logits(self, texts: Sequence[str], progress: Callable[[int], object] = int) -> np.ndarray:
        """The logits of the labels: (texts, labels) float32.

        A text that is longer than the context is cut off there. progress: called with the number of
        texts that have been read.
        """
        config = self.config
        rows = [self.tokenizer.encode(text)[: config.seq_len] for text in texts]
        found = np.empty((len(rows), config.n_labels), np.float32)
        for start in range(0, len(rows), _BATCH):
            some = rows[start : start + _BATCH]
            states = [State(config) for _ in some]
            found[start : start + _BATCH] = self.transformer.forward_rows(some, states)
            progress(len(some))
        return found

    def classify(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """The probability of each label, for each text."""
        logits = self.logits([texts] if isinstance(texts, str) else texts)
        shares = np.exp(log_softmax(logits))
        return [dict(zip(self.labels, row.tolist(), strict=True)) for row in shares]
