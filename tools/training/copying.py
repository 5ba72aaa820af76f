"""Random tokens, repeated once: the training data before the first story.

To predict the second half, a network must find an earlier occurrence of a token and copy the token
after it (induction heads: Olsson et al. 2022, arXiv 2209.11895). A network learns this from stories
too, but late: one of a million parameters changed its hero's name for thousands of steps.
"""

from __future__ import annotations

import numpy as np

from llama2np.text.tokenizer import BOS

_PIECES = 64  # in each half
_FIRST = 259  # pieces before this are <unk>, BOS, EOS and the 256 bytes


def said_twice(rows: int, vocab_size: int, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (rows, 2 x 64) int64, a BOS and pieces said twice, and what follows each.

    Of what follows only the second saying counts: the rest is -1.
    """
    rng = np.random.default_rng(seed)
    once = rng.integers(_FIRST, vocab_size, (rows, _PIECES))
    text = np.concatenate([np.full((rows, 1), BOS), once, once], axis=1)
    targets = text[:, 1:].copy()
    targets[:, :_PIECES] = -1
    return text[:, :-1], targets
