"""Arrays at the beginning of a line of the cache."""

import numpy as np
import pytest
from conftest import TINY

from llama2np.aligned import aligned_zeros
from llama2np.formats import checkpoint
from llama2np.formats.checkpoint import Header
from llama2np.kernels.runtime.pool import POOL
from llama2np.model.config import Config
from llama2np.model.transformer import State, Transformer
from llama2np.model.weights import Dense, Int8, Weights


@pytest.mark.parametrize("shape", ((0,), (1,), (3, 5), (2, 0, 4), (300, 700)))
@pytest.mark.parametrize("dtype", (np.int8, np.float32, np.int64))
def test_aligned_zeros(shape, dtype):
    kept = [aligned_zeros(shape, dtype) for _ in range(5)]
    for array in kept:
        assert array.ctypes.data % 64 == 0 or not array.size
        assert array.shape == shape and array.dtype == dtype
        assert array.flags.c_contiguous and array.flags.writeable and not array.any()


def test_what_the_kernels_work_on_is_aligned(write):
    config = Config(
        dim=48, hidden_dim=80, n_layers=2, n_heads=3, n_kv_heads=3, vocab_size=9, seq_len=600
    )
    transformer = Transformer(*checkpoint.load(write("x.bin", Header(1, config, True))))
    state = State(config)
    state.reserve(600)
    assert len(state.addresses) == 2 and not (state.addresses % 64).any()
    for count in (1, 5, 17):
        logits = np.zeros((1, 9), np.float32)
        run = transformer._engine.run(np.zeros(count, np.int64), [state], [count], logits)
        assert run.arena.ctypes.data % 64 == run.scores.ctypes.data % 64 == 0
        places = list(run.table.places.values())
        assert run.table.address % 64 == 0 and not any(
            4 * place % 64 for place in places if place > 0
        )
    assert POOL.own_scratch() % 64 == 0


@pytest.mark.parametrize("version, group", ((1, 0), (2, 16)))
def test_weights_at_odd_addresses_are_copied(write, version, group):
    """Some files have them there; a compiled loop may not read a float32 at any address."""
    loaded = checkpoint.load(write("x.bin", Header(version, TINY, True, group)))

    def shifted(array):
        memory = np.zeros(array.nbytes + 1, np.uint8)
        odd = memory[1:].view(array.dtype).reshape(array.shape)
        odd[:] = array
        return odd

    def moved(tensor):
        if isinstance(tensor, np.ndarray):
            return shifted(tensor)
        kind = Int8 if isinstance(tensor, Int8) else Dense
        return kind(*map(shifted, tensor.arrays))

    odd = Weights({name: moved(tensor) for name, tensor in loaded[1].items()})
    transformer = Transformer(loaded[0], odd)
    for tokens in ([5], [5, 6, 7], [5] * 20):
        np.testing.assert_array_equal(
            transformer.forward(tokens, State(TINY)),
            Transformer(*loaded).forward(tokens, State(TINY)),
        )
    assert transformer.weights.final_norm is odd.final_norm
