"""Random tokens, repeated once: the training data before the first story.

To predict the second half, a network must find an earlier occurrence of a token and copy the token
after it (induction heads: Olsson et al. 2022, arXiv 2209.11895). A network learns this from stories
too, but late: one of a million parameters changed its hero's name for thousands of steps.
"""

from __future__ import annotations

import numpy as np

from llama2np.learning.batch import Batch
from llama2np.text.tokenizer import BOS

_PIECES = 64  # in each half
_FIRST = 259  # pieces before this are <unk>, BOS, EOS and the 256 bytes


def said_twice(rows: int, vocab_size: int, seed: tuple[int, ...]) -> Batch:
    """A batch (rows, 2 x 64): a BOS and pieces said twice, of which the second are predicted."""
    random = np.random.default_rng(seed)
    once = random.integers(_FIRST, vocab_size, (rows, _PIECES))
    text = np.concatenate([np.full((rows, 1), BOS), once, once], axis=1)
    counts = np.arange(2 * _PIECES) >= _PIECES
    which = np.flatnonzero(np.tile(counts, rows))
    lengths = np.full(rows, 2 * _PIECES)
    return Batch(text[:, :-1].copy(), lengths, which, text[:, 1:].ravel()[which])
