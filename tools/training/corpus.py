"""The corpus: texts from the teller, a tokenizer trained on them, tokens, batches of stories."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import sentencepiece

from llama2np.atomic import replacing
from llama2np.learning.batch import Batch, padded
from llama2np.text.tokenizer import BOS
from tools.stories.teller import Story, tell
from tools.stories.words import said_again

HELD_OUT = 10_000_000  # stories from this number on are never trained on


def stories(first: int, count: int) -> Iterator[Story]:
    """Stories first to first + count, told by all processors."""
    with Pool() as pool:
        yield from pool.imap(tell, range(first, first + count), chunksize=500)


@dataclass(frozen=True)
class Corpus:
    """Stories as tokens: each begins with BOS, and BOS is what follows its last token."""

    tokens: np.ndarray  # uint16, all stories one after the other, and one BOS at the end
    starts: np.ndarray  # int64, where each story begins, and the end of the last
    nats: np.ndarray  # float64, minus the log-probability of the choices behind each
    again: np.ndarray  # bool, for each token: whether it repeats the name of a character

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each story, BOS included."""
        return np.diff(self.starts)

    @property
    def entropy(self) -> float:
        """Nats for a token: what a perfect model needs at most, the ends of stories included."""
        return float(self.nats.sum() / self.lengths.sum())

    def batch(self, stories: np.ndarray, emphasis: float = 1.0) -> Batch:
        """Stories (n,) as a batch; what follows a story is BOS.

        emphasis: the weight in the loss of a token that repeats a name; others have 1.
        """
        lengths = self.lengths[stories]
        tokens, _ = padded([self.tokens[self.starts[i] : self.starts[i + 1]] for i in stories])
        following = np.concatenate(
            [np.arange(self.starts[i] + 1, self.starts[i + 1] + 1) for i in stories]
        )
        rows = np.flatnonzero(np.arange(tokens.shape[1]) < lengths[:, None])
        weights = None
        if emphasis != 1:
            weights = np.where(self.again[following], np.float32(emphasis), np.float32(1))
        targets = self.tokens[following].astype(np.int64)
        return Batch(tokens, lengths, rows, targets, weights=weights)

    def all(self, rows: int = 64) -> Iterator[Batch]:
        """All stories in batches of about `rows`, the shortest first."""
        order = np.argsort(self.lengths, kind="stable")
        for part in np.array_split(order, -(-len(order) // rows)):
            yield self.batch(part)

    def save(self, path: Path) -> None:
        """Write an .npz."""
        with replacing(path) as file:
            np.savez(file, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Corpus:
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            return cls(**arrays)


def encode(told: Iterator[Story], model: Path, longest: int) -> Corpus:
    """The tokens of stories, by a sentencepiece model, those of more than `longest` left out."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    ids = range(processor.vocab_size())
    lengths = np.array([1 if processor.is_byte(i) else len(processor.id_to_piece(i)) for i in ids])
    tokens, starts, nats, again = [], [0], [], []
    for story in told:
        pieces = processor.encode(story.text)
        if len(pieces) >= longest:
            continue
        tokens.append(np.array([BOS, *pieces], np.uint16))
        starts.append(starts[-1] + len(tokens[-1]))
        nats.append(story.nats)
        ends = np.cumsum(lengths[pieces]) - 1  # a space is put before the text; all of it is ASCII
        within = np.zeros(len(pieces) + 1, bool)
        for start, end in said_again(story.text):
            within[1:] |= (ends > start) & (ends - lengths[pieces] < end)
        again.append(within)
    tokens.append(np.array([BOS], np.uint16))
    again.append(np.array([False]))
    return Corpus(np.concatenate(tokens), np.array(starts), np.array(nats), np.concatenate(again))


def batches(lengths: np.ndarray, size: int, seed: int) -> list[np.ndarray]:
    """All stories, `size` in a batch, in an order that only the seed decides.

    Of each 50 batches' worth of stories those of one length come together: rows end alike.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lengths))
    found = []
    for start in range(0, len(order), 50 * size):
        chunk = order[start : start + 50 * size]
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        found += [chunk[i : i + size] for i in range(0, len(chunk), size)]
    found = [batch for batch in found if len(batch) == size]
    return [found[i] for i in rng.permutation(len(found))]
