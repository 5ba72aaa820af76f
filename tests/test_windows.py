"""Layers with a sliding window: what they see, and the memory that they give back."""

import numpy as np
import pytest

from llama2np.model.config import Config
from llama2np.model.transformer import State, Transformer
from llama2np.model.weights import Dense, Weights, shape_of

TOKENS = np.random.default_rng(1).integers(0, 50, 2600)
NAMES = "attn_norm wq wk wv wo ffn_norm w_gate w_up w_down".split()


def network(*windows, seq_len=4096):
    """A tiny Llama with a window for each layer."""
    c = Config(16, 24, len(windows), 2, 1, 50, seq_len, windows=windows)
    names = ["embedding", "final_norm", "classifier"]
    names += [f"layers.{i}.{name}" for i in range(c.n_layers) for name in NAMES]
    random, tensors = np.random.default_rng(0), {}
    for name in names:
        shape = shape_of(name, c)
        values = random.standard_normal(shape, np.float32) * (1 if len(shape) == 1 else 0.4)
        tensors[name] = values if len(shape) == 1 else Dense(values)
    return Transformer(c, Weights(tensors))


@pytest.mark.parametrize("windows", ((70, 70), (0, 70), (600, 70), (64, 1)))
def test_a_long_text_in_any_pieces(windows):
    """Keys that are older than a window do not count, whatever the memory has of them."""
    model = network(*windows)
    whole = model.forward(TOKENS, State(model.config), all_logits=True)
    state, rows = State(model.config), []
    for count in (1, 500, 1, 12, 13, 700, 900):
        rows.append(model.forward(TOKENS[state.pos : state.pos + count], state, all_logits=True))
    while state.pos < len(TOKENS) and len(rows) < 100:
        rows.append(model.forward(TOKENS[state.pos : state.pos + 1], state, all_logits=True))
    found = np.concatenate(rows)
    np.testing.assert_array_equal(found, whole[: len(found)])


def test_what_is_older_than_all_windows_does_not_matter():
    """Information moves back by the sum of the windows, and no further."""
    model = network(40, 60)
    reach = 40 + 60 - 2
    other = TOKENS[:900].copy()
    other[:300] = (other[:300] + 1) % 50
    a, b = (
        model.forward(tokens, State(model.config), all_logits=True)
        for tokens in (TOKENS[:900], other)
    )
    np.testing.assert_array_equal(a[300 + reach :], b[300 + reach :])
    assert (a[300 : 300 + reach] != b[300 : 300 + reach]).any(1).all()


def memory(state):
    return sum(chunk.nbytes for chunk in state._chunks)


def test_memory_is_given_back():
    model, full = network(70, 100), network(70, 0)
    state, all_kept = State(model.config), State(full.config)
    for start in range(0, 2600, 100):
        model.forward(TOKENS[start : start + 100], state)
        full.forward(TOKENS[start : start + 100], all_kept)
    assert state.chunk == 512
    assert memory(state) == memory(all_kept) // 2  # 3 chunks of 6
    twin = state.fork()
    np.testing.assert_array_equal(model.forward([1], state), model.forward([1], twin))


def test_a_window_cannot_go_back(tmp_path):
    model = network(70)
    state = State(model.config)
    model.forward(TOKENS, state)
    state.truncate(2590)  # a rejected draft
    for pos in (1000, 1):
        with pytest.raises(ValueError, match="the window has moved on"):
            state.truncate(pos)
        with pytest.raises(ValueError, match="the window has moved on"):
            state.pos = pos
    state.save(tmp_path / "x.npz")
    loaded = State.load(tmp_path / "x.npz", model.config)
    again = model.forward(TOKENS[2590:], loaded)
    np.testing.assert_array_equal(again, model.forward(TOKENS[2590:], state))
    # A common prefix that is gone is read again.
    assert state.reuse(TOKENS[:500].tolist()) == TOKENS[:500].tolist()
    fresh = State(model.config)
    expected = model.forward(TOKENS[:500], fresh)
    np.testing.assert_array_equal(model.forward(TOKENS[:500], state), expected)
