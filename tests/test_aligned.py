"""Arrays at the beginning of a line of the cache."""

import numpy as np
import pytest

from llama2np import kernels
from llama2np.model.config import Config
from llama2np.model.transformer import Scratch, State


@pytest.mark.parametrize("shape", ((0,), (1,), (3, 5), (2, 0, 4), (300, 700)))
@pytest.mark.parametrize("dtype", (np.int8, np.float32, np.int64))
def test_aligned_zeros(shape, dtype):
    kept = [kernels.aligned_zeros(shape, dtype) for _ in range(5)]
    for array in kept:
        assert array.ctypes.data % 64 == 0 or not array.size
        assert array.shape == shape and array.dtype == dtype
        assert array.flags.c_contiguous and array.flags.writeable and not array.any()


def test_what_the_kernels_work_on_is_aligned():
    config = Config(
        dim=48, hidden_dim=80, n_layers=2, n_heads=3, n_kv_heads=3, vocab_size=9, seq_len=100
    )
    state = State(config)
    state.reserve(70)
    arrays = (state.keys, state.values, state.scores, *Scratch.for_tokens(5, config).arrays)
    assert all(array.ctypes.data % 64 == 0 for array in arrays)
