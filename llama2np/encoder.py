"""Encoder: BERT and its relatives with their tokenizer, the main class for reading whole texts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llama2np import arguments
from llama2np.arguments import none_means_default, path_like, text, whole, wrong
from llama2np.decoding.logits import log_softmax
from llama2np.formats import loading
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.source import Sentences
from llama2np.model.config import Config
from llama2np.model.encoder import Encoded, EncoderNetwork
from llama2np.model.networks import is_encoder
from llama2np.output import brief
from llama2np.text.tokenizer import Tokenizer

_BATCH = 32  # texts that are read together


@dataclass(frozen=True, slots=True)
class Filled:
    """A token for a masked place, and its probability there."""

    text: str
    token: int
    probability: float
    sentence: str  # with the token in its place


class Encoder:
    """An encoder network and its tokenizer.

    >>> model = Encoder.load("all-MiniLM-L6-v2")
    >>> a, b = model.embed(["A cat sits.", "A kitten is sitting."])
    >>> similarity = a @ b
    """

    def __init__(
        self,
        network: EncoderNetwork,
        tokenizer: Tokenizer,
        labels: Sequence[str] = (),
        sentences: Sentences | None = None,
    ):
        """labels: of texts, for `classify`; sentences: the settings of `embed`."""
        if not isinstance(network, EncoderNetwork):
            raise TypeError("Encoder() takes an EncoderNetwork; Encoder.load opens a folder")
        self.network, self.tokenizer, self.labels = network, tokenizer, tuple(labels)
        self.sentences = sentences or Sentences()

    def __repr__(self) -> str:
        c = self.config
        return f"Encoder({c.n_layers} layers of dim {c.dim}, up to {c.seq_len:,} tokens)"

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        tokenizer: str | os.PathLike[str] | None = None,
        engine: str = "compiled",
        activations: str | None = None,
    ) -> Encoder:
        """Open a folder of transformers or sentence-transformers, such as bert-base-uncased.

        tokenizer: by default that of the folder. engine: "compiled" or "numpy". activations: see
        Llama.load. Raises ValueError for the folder of a decoder, CheckpointError, TokenizerError
        and OSError.
        """
        path_like("path", path)
        loaded = loading.load(path)
        if not is_encoder(loaded.config):
            kind = loaded.config.architecture
            raise CheckpointError(
                f"{path}: {kind}, a decoder: `llama2np generate` and Llama.load open it"
            )
        network = EncoderNetwork(
            loaded.config, loaded.weights, engine, loading.activations_for(path, activations)
        )
        return cls(network, loaded.tokenizer(tokenizer), loaded.labels, loaded.sentences)

    @property
    def config(self) -> Config:
        """The shape of the network."""
        return self.network.config

    def forward(
        self,
        ids: Sequence[Sequence[int]] | np.ndarray,
        mask: Sequence[Sequence[int]] | np.ndarray | None = None,
        types: Sequence[Sequence[int]] | np.ndarray | None = None,
    ) -> Encoded:
        """Read a batch of tokens (B, T): see `EncoderNetwork.forward`.

        mask: 0 for padding, by default 1; types: 0 and 1 for the two texts of a pair, by default 0.
        """
        return self.network.forward(ids, mask, types)

    @none_means_default
    def embed(
        self,
        texts: str | Iterable[str],
        pooling: str | None = None,
        normalize: bool | None = True,
        max_tokens: int | None = None,
    ) -> np.ndarray:
        """Vectors of texts whose dot product says how similar they are: (n, dim) float32.

        pooling: "mean" of the last hidden states, or "cls", that of the first token. normalize:
        divide by the L2 norm. max_tokens: a longer text is cut off there. The defaults are those of
        a sentence-transformers folder, else "mean" and the network's longest text. One text gives
        (dim,).
        """
        pooling = pooling or self.sentences.pooling
        max_tokens = max_tokens or self.sentences.max_tokens or None
        if pooling not in ("mean", "cls"):
            raise wrong("pooling", "'mean' or 'cls'", pooling)
        rows = [self._tokens(each, max_tokens) for each in arguments.texts("texts", texts)]
        vectors = np.empty((len(rows), self.config.dim), np.float32)
        # Texts of about the same length are read together; padding costs no time, but memory.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for start in range(0, len(order), _BATCH):
            some = order[start : start + _BATCH]
            ids, mask = _padded([rows[i] for i in some])
            hidden = self.network.forward(ids, mask, heads=()).last_hidden_state
            if pooling == "mean":
                vectors[some] = hidden.sum(1) / mask.sum(1)[:, None]  # padding is 0
            else:
                vectors[some] = hidden[:, 0]
        if normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors[0] if isinstance(texts, str) else vectors

    def fill_mask(self, sentence: str, top_k: int = 5) -> list[Filled] | list[list[Filled]]:
        """The most probable tokens for "[MASK]" in a sentence, the most probable first.

        For a sentence with several masks there is a list for each. Raises ValueError for a sentence
        without one, and for a network without this head.
        """
        tokens, mask = self._tokens(sentence), self.tokenizer.mask_id
        places = [i for i, token in enumerate(tokens) if token == mask]
        if mask is None or not places:
            name = "[MASK]" if mask is None else self.tokenizer.decode([mask])
            raise ValueError(f"there is no {name} in {brief(sentence)}")
        top_k = whole("top_k", top_k, 1)
        hidden = self.network.forward([tokens], heads=()).last_hidden_state[0]
        logits = self.network.mlm(hidden[places])
        found = [
            self._filled(tokens, place, row, top_k)
            for place, row in zip(places, logits, strict=True)
        ]
        return found[0] if len(found) == 1 else found

    def _filled(
        self, tokens: list[int], place: int, logits: np.ndarray, top_k: int
    ) -> list[Filled]:
        shares = np.exp(log_softmax(logits))
        filled = []
        for token in np.argsort(-shares, kind="stable")[:top_k].tolist():
            whole_text = self.tokenizer.decode(
                [*tokens[:place], token, *tokens[place + 1 :]], skip_special=True
            )
            piece = self.tokenizer.decode([token])
            filled.append(Filled(piece, token, float(shares[token]), whole_text))
        return filled

    @property
    def classifies(self) -> bool:
        """Whether the network has a head that classifies texts."""
        return {"labels", "pooler"} <= self.network.programs.keys()

    def classify(self, texts: str | Iterable[str]) -> list[dict[str, float]]:
        """{label: probability} for each text, by the network's own head.

        Raises ValueError for a network without one.
        """
        if not self.classifies:
            raise ValueError("this network has no head that classifies texts")
        found = []
        for each in arguments.texts("texts", texts):
            logits = self.network.forward([self._tokens(each)]).logits
            assert logits is not None
            shares = np.exp(log_softmax(logits[0])).tolist()
            names = self.labels or [f"LABEL_{i}" for i in range(len(shares))]
            found.append(dict(zip(names, shares, strict=True)))
        return found

    def _tokens(self, each: str, max_tokens: int | None = None) -> list[int]:
        """The tokens of a text with those around it, cut to what the network reads."""
        most = self.config.seq_len
        if max_tokens is not None:
            most = min(most, whole("max_tokens", max_tokens, 2))
        tokens = self.tokenizer.encode(text("a text", each))
        if not tokens:
            raise ValueError("a text has no tokens")
        return tokens if len(tokens) <= most else [*tokens[: most - 1], tokens[-1]]


def _padded(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """The rows as (n, longest) int64, with 0 after their ends, and 1 where there is a token."""
    width = max(map(len, rows))
    ids, mask = np.zeros((2, len(rows), width), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return ids, mask
