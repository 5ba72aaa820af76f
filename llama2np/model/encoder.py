"""An encoder: it reads whole texts, each token with the later ones in view. No text, no files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llama2np.arguments import wrong
from llama2np.model.config import Config
from llama2np.model.engine import ACTIVATIONS, Engine
from llama2np.model.networks import HEADS, encoder_programs, is_encoder
from llama2np.model.state import State
from llama2np.model.transformer import make_engine
from llama2np.model.weights import Weights

# Texts are read together until they have this many tokens: enough to keep the products busy.
_ROWS = 512


@dataclass(frozen=True, slots=True)
class Encoded:
    """What an encoder says about a batch of B texts of up to T tokens; float32, 0 for padding.

    A value is None if the network has no such head, or if the head was not requested.
    """

    last_hidden_state: np.ndarray  # (B, T, dim)
    pooler_output: np.ndarray | None = None  # (B, dim)
    mlm_logits: np.ndarray | None = None  # (B, T, vocab_size): which token stands there
    nsp_logits: np.ndarray | None = None  # (B, 2): whether text b follows text a, or not
    logits: np.ndarray | None = None  # (B, n_labels)

    def __getitem__(self, name: str) -> np.ndarray:
        """The value of that name. Raises KeyError if there is none."""
        value = getattr(self, name, None) if name in self.__dataclass_fields__ else None
        if value is None:
            raise KeyError(name)
        found: np.ndarray = value
        return found


class EncoderNetwork:
    """The programs of an encoder, its weights, and an engine for each program.

    Raises ValueError for weights that do not fit the Config, and for the Config of a decoder.
    """

    def __init__(
        self,
        config: Config,
        weights: Weights,
        engine: str = "compiled",
        activations: str = ACTIVATIONS[0],
    ):
        if not is_encoder(config):
            raise ValueError(f"{config.architecture} is no encoder: use Transformer")
        self.config, self.weights = config, weights
        self.programs = encoder_programs(config, weights.own())
        self._engines: dict[str, Engine] = {
            name: make_engine(engine, program, activations)
            for name, program in self.programs.items()
        }

    def __repr__(self) -> str:
        c = self.config
        heads = ", ".join(name for name in self.programs if name != "body") or "no heads"
        return f"EncoderNetwork({c.n_layers} layers of dim {c.dim}, {heads})"

    def forward(
        self,
        ids: Sequence[Sequence[int]] | np.ndarray,
        mask: Sequence[Sequence[int]] | np.ndarray | None = None,
        types: Sequence[Sequence[int]] | np.ndarray | None = None,
        heads: Sequence[str] = ("pooler", "mlm", "pairs", "labels"),
    ) -> Encoded:
        """Read a batch of texts: ids, mask and types are (B, T) integers.

        mask: 0 for padding, which no token attends to; by default all are 1. types: 0 for the
        first, 1 for the second text of a pair; by default all are 0. heads: those of the network's
        that are computed. A token's position is its column. Raises ValueError for other shapes,
        for ids outside the vocabulary, for more columns than the network has positions, and for a
        head that no network has.
        """
        if unknown := [name for name in heads if name not in HEADS]:
            raise wrong("heads", f"some of {', '.join(HEADS)}", unknown[0])
        ids, mask, types = self._checked(ids, mask, types)
        hidden = np.zeros((*ids.shape, self.config.dim), np.float32)
        for rows in _batches(mask):
            self._read(ids, mask, types, rows, hidden)
        kept = mask.nonzero()
        found: dict[str, np.ndarray] = {}
        first = hidden[np.arange(len(ids)), mask.argmax(1)]  # of each text, past left padding
        wanted = [name for name in heads if name in self.programs]
        pooled = None
        if {"pooler", "pairs", "labels"} & set(wanted) and "pooler" in self.programs:
            pooled = self._head("pooler", first)
        if "mlm" in wanted:
            logits = np.zeros((*ids.shape, self.config.vocab_size), np.float32)
            logits[kept] = self._head("mlm", hidden[kept])
            found["mlm_logits"] = logits
        for name, output in (("pairs", "nsp_logits"), ("labels", "logits")):
            if name in wanted and pooled is not None:
                found[output] = self._head(name, pooled)
        return Encoded(hidden, pooled if "pooler" in wanted else None, **found)

    def mlm(self, hidden: np.ndarray) -> np.ndarray:
        """The logits (n, vocab_size) of the tokens at places with hidden states (n, dim).

        Raises ValueError for a network without this head, and for another shape.
        """
        if "mlm" not in self.programs:
            raise ValueError("this network has no head that predicts masked tokens")
        hidden = np.asarray(hidden, np.float32)
        if hidden.ndim != 2 or hidden.shape[1] != self.config.dim:
            raise ValueError(f"hidden must be (n, {self.config.dim}), not {hidden.shape}")
        return self._head("mlm", hidden)

    def _read(
        self,
        ids: np.ndarray,
        mask: np.ndarray,
        types: np.ndarray,
        rows: Sequence[int],
        hidden: np.ndarray,
    ) -> None:
        """Compute the hidden states of some texts in one pass, without their padding."""
        places = [np.flatnonzero(mask[row]) for row in rows]
        states = [State(self.config) for _ in rows]
        for state, place in zip(states, places, strict=True):
            state.make_room(len(place))
        tokens, kinds = (
            np.concatenate([array[row][place] for row, place in zip(rows, places, strict=True)])
            for array in (ids, types)
        )
        counts, nothing = [len(place) for place in places], np.empty((0, 1), np.float32)
        positions = np.concatenate(places)
        engine, program = self._engines["body"], self.programs["body"]
        run = engine.run(tokens, states, counts, nothing, types=kinds, positions=positions)
        run.go()
        found, start = run.array(program.output), 0
        for row, place in zip(rows, places, strict=True):
            hidden[row, place] = found[start : start + len(place)]
            start += len(place)

    def _head(self, name: str, x: np.ndarray) -> np.ndarray:
        """The output of a head for rows x (n, width): (n, width of the output)."""
        program, engine, state = self.programs[name], self._engines[name], State(self.config)
        width = program.output.width
        out = np.empty((len(x), width), np.float32)
        (given,) = program.steps[0].outputs
        for start in range(0, len(x), _ROWS):
            rows = out[start : start + _ROWS]
            logits = rows if program.has_logits else rows[:0]
            run = engine.run(np.zeros(len(rows), np.int64), [state], [len(rows)], logits)
            run.put(given, x[start : start + _ROWS])
            run.go()
            if not program.has_logits:
                rows[:] = run.array(program.output)
        return out

    def _checked(
        self, ids: object, mask: object, types: object
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found = _integers("ids", ids, None, self.config.vocab_size)
        shape = found.shape
        if shape[1] > self.config.seq_len:
            raise ValueError(
                f"a text of {shape[1]} tokens, this network reads at most {self.config.seq_len}"
            )
        kept = np.ones(shape, np.int64) if mask is None else _integers("mask", mask, shape, 2)
        if not kept.any(1).all():
            raise ValueError("mask: a text has no tokens")
        kinds = (
            np.zeros(shape, np.int64)
            if types is None
            else _integers("types", types, shape, self.config.n_types)
        )
        return found, kept, kinds


def _integers(name: str, values: object, shape: tuple[int, ...] | None, limit: int) -> np.ndarray:
    """values as (B, T) int64 of 0 to limit - 1. Raises ValueError."""
    try:
        array = np.asarray(values)
    except ValueError:  # rows of different lengths
        raise ValueError(f"{name} must be (B, T) integers, padded to the same length") from None
    if array.ndim != 2 or not array.size or array.dtype.kind not in "iub":
        raise ValueError(f"{name} must be (B, T) integers, not {array.dtype} {array.shape}")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
    if array.min() < 0 or array.max() >= limit:
        raise ValueError(f"{name} must be 0 to {limit - 1}, found {array.min()} to {array.max()}")
    return array.astype(np.int64)


def _batches(mask: np.ndarray) -> Iterator[list[int]]:
    """Yield the rows of texts that are read together: at least one, and about _ROWS tokens."""
    some: list[int] = []
    count = 0
    for row, length in enumerate((mask != 0).sum(1)):
        if some and count + length > _ROWS:
            yield some
            some, count = [], 0
        some.append(row)
        count += int(length)
    yield some
