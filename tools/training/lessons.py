"""The batches of a training, in their order: tokens said twice first, then the stories."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np

from llama2np.learning.batch import Batch
from tools.training.copying import said_twice
from tools.training.corpus import Corpus, batches


@dataclass
class Lessons:
    """Batch i is a function of i and these numbers: see llama2np.learning.trainer.Data.

    copying: batches of tokens said twice. steps: batches of stories after them; in the first
    `emphasised` of these, a repeated name has `emphasis` times the weight in the loss.
    """

    corpus: Corpus
    vocab_size: int
    rows: int
    copying: int
    steps: int
    emphasis: float
    emphasised: int
    seed: int
    _order: list[np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        self._order = []
        while len(self._order) < self.steps:
            more = batches(self.corpus.lengths, self.rows, self.seed + len(self._order))
            if not more:
                raise ValueError(f"{len(self.corpus)} stories: a batch has {self.rows}")
            self._order += more

    @property
    def name(self) -> str:
        """What distinguishes these batches from others: in the checkpoint."""
        check = zlib.crc32(self.corpus.tokens)
        numbers = f"{self.copying} + {self.steps} batches of {self.rows}, seed {self.seed}"
        names = f"names {self.emphasis} for {self.emphasised}"
        return f"{len(self.corpus)} stories {check:08x}, {numbers}, {names}"

    def batch(self, number: int) -> Batch:
        """The batch of that number."""
        story = number - self.copying
        if story < 0:
            return said_twice(self.rows, self.vocab_size, (self.seed, number))
        emphasis = self.emphasis if story < self.emphasised else 1.0
        return self.corpus.batch(self._order[story], emphasis)
