"""What a token costs: the bytes that it makes the machine read, and the multiply-adds it takes."""

from __future__ import annotations

from llama2np.model.config import Config
from llama2np.model.weights import Weights


def bytes_to_generate(config: Config, weights: Weights, depth: int, count: int) -> float:
    """Bytes read for one token of `count` that follow the first `depth`, on average.

    Each matrix and norm once, one row of the embedding, and the keys and values of all tokens so
    far. A model that fits into the CPU's caches is read faster than memory.
    """
    norms = 4 * config.dim * (2 * config.n_layers + 1)
    seen = depth + (count + 1) / 2
    cache = 2 * 4 * config.n_layers * config.kv_dim * seen
    matrices = sum(array.nbytes for matrix in weights.multiplied for array in matrix.arrays)
    return matrices + norms + cache


def operations_to_read(config: Config, depth: int, count: int) -> float:
    """Multiplications and additions for one token of a prompt of `count` behind `depth` others.

    Two for each value of the blocks' matrices, and attention's, over half of the prompt on average.
    The classifier, which only a prompt's last token needs, is left out, and so are norms, softmax
    and the like.
    """
    c = config
    matrices = c.n_layers * (2 * c.dim * c.dim + 2 * c.dim * c.kv_dim + 3 * c.dim * c.hidden_dim)
    attention = 2 * c.n_layers * c.dim * (depth + (count + 1) / 2)
    return 2 * (matrices + attention)
