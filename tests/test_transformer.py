"""The forward pass against naive.py and against what the C programs computed."""

import pickle
import threading
from copy import deepcopy
from dataclasses import replace

import naive
import numpy as np
import pytest
from conftest import TINY, random_tensors

from llama2np.formats import checkpoint
from llama2np.formats.checkpoint import Header
from llama2np.model.config import Config
from llama2np.model.hooks import Edit, Trace
from llama2np.model.transformer import BLOCK, State, Transformer


def in_blocks(transformer, tokens, size):
    """All logits of a sequence that is read in blocks."""
    state = State(transformer.config)
    blocks = [tokens[at : at + size] for at in range(0, len(tokens), size)]
    return np.concatenate([transformer.forward(b, state, all_logits=True) for b in blocks])


def tokens_of(config, count, seed=0):
    return np.random.default_rng(seed).integers(0, config.vocab_size, count)


@pytest.mark.parametrize("tied", (True, False))
@pytest.mark.parametrize("version", (0, 1))
def test_float32_equals_naive(write, version, tied):
    header = Header(version, TINY, tied)
    transformer = Transformer(*checkpoint.load(write("tiny.bin", header)))
    tokens = tokens_of(TINY, TINY.seq_len)
    expected = naive.forward(TINY, random_tensors(header), tokens)
    for size in (1, 7, 16, len(tokens)):
        found = in_blocks(transformer, tokens, size)
        np.testing.assert_allclose(found, expected, atol=2e-4, rtol=1e-4)


def test_int8_is_near_its_float32(write):
    """Quantized activations cost accuracy, but little; and blocks change nothing, to the bit."""
    header = Header(2, TINY, False, group_size=16)
    transformer = Transformer(*checkpoint.load(write("tiny.bin", header)))
    tokens = tokens_of(TINY, 40)
    tensors = {
        name: t[0] * np.repeat(t[1], 16, axis=-1) if isinstance(t, tuple) else t
        for name, t in random_tensors(header).items()
    }
    expected = naive.forward(TINY, tensors, tokens)
    found = in_blocks(transformer, tokens, 1)
    assert np.abs(found - expected).mean() < 0.03 * np.abs(expected).mean()
    for size in (7, 40):
        np.testing.assert_array_equal(in_blocks(transformer, tokens, size), found)


class Louder(Transformer):
    """A network whose logits are twice as large."""

    def forward(self, tokens, state, all_logits=False):
        return 2 * super().forward(tokens, state, all_logits)


@pytest.mark.parametrize("version", (0, 2))
def test_a_walk_is_the_forward_pass_step_by_step(write, version):
    header = Header(version, TINY, False, group_size=16 if version == 2 else 0)
    transformer = Transformer(*checkpoint.load(write("tiny.bin", header)))
    tokens = tokens_of(TINY, 90)
    trace = Trace()
    expected = transformer.with_hooks([trace]).forward(tokens, State(TINY), all_logits=True)
    state, steps = State(TINY), []
    for size in (70, 1, 1, 18):
        part = slice(state.pos, state.pos + size)
        for step, arrays in transformer.walk(tokens[part], state):
            steps.append(step)
            for value in step.outputs:
                array = arrays[value.name]
                assert array.shape == (size, value.width) and array.dtype == np.float32
                if value.name not in trace or (step.op, value.name) in (
                    ("linear", "q"),
                    ("linear", "k"),
                ):
                    continue
                recorded = (
                    trace[value.name, step.layer] if step.layer is not None else trace[value.name]
                )
                np.testing.assert_array_equal(array, recorded.reshape(90, -1)[part])
    assert steps == 4 * list(transformer.program.steps)
    np.testing.assert_array_equal(arrays["logits"], expected[72:])
    assert state.pos == 90 and state.tokens.tolist() == tokens.tolist()


def test_what_is_changed_on_a_walk_stays_changed(write):
    transformer = Transformer(*checkpoint.load(write("tiny.bin", Header(1, TINY, True))))
    for step, arrays in transformer.walk([5, 6, 7]):
        if step.layer == 1 and "mlp_out" in arrays:
            arrays["mlp_out"][:] = 0
    edited = transformer.with_hooks([Edit("mlp_out", lambda array, place: 0 * array, layers=1)])
    expected = edited.forward([5, 6, 7], State(TINY), all_logits=True)
    np.testing.assert_array_equal(arrays["logits"], expected)


def test_a_walk_refuses_what_forward_refuses(write):
    config = replace(TINY, seq_len=BLOCK + 20)
    transformer = Transformer(*checkpoint.load(write("tiny.bin", Header(0, config, True))))
    state = State(config)
    for tokens, message in (
        ([], "one or more"),
        ([300], "not in the vocab"),
        ([1] * 257, "at most 256"),
    ):
        with pytest.raises(ValueError, match=message):
            next(transformer.walk(tokens, state))
    assert state.pos == 0
    transformer.forward([1], state)  # nobody owns it any more


def test_a_state_that_is_being_read_is_refused(write):
    transformer = Transformer(*checkpoint.load(write("tiny.bin", Header(0, TINY, True))))
    state, other = State(TINY), State(TINY)

    def read_again(array, place):
        transformer.forward([1], other)
        with pytest.raises(ValueError, match="the State is being read by"):
            transformer.forward([1], state)
        with pytest.raises(ValueError, match="the State is being read by"):
            transformer.greedy(1, state, 2)
        with pytest.raises(ValueError, match="the State is being read by"):
            transformer.forward_rows([[1], [1]], [other, state])
        assert other.pos == 1

    edited = transformer.with_hooks([Edit("resid_mid", read_again, layers=0)])
    edited.forward([1, 2], state)
    assert (state.pos, other.pos) == (2, 1)


def test_rows_of_several_sequences_are_refused_all_or_none(write):
    transformer = Transformer(*checkpoint.load(write("tiny.bin", Header(0, TINY, True))))
    states = [State(TINY) for _ in range(3)]
    transformer.forward([3] * 95, states[2])
    watched = transformer.with_hooks([Trace("q")])
    for pieces, some, message in (
        ([[1], [2]], states, "2 pieces for 3 states"),
        ([], [], "0 pieces for 0 states"),
        ([[1], [300]], states[:2], "token 300 is not in the vocabulary"),
        ([[1], []], states[:2], "one or more"),
        ([[1], [1, 2]], states[1:], "2 tokens at position 95 do not fit"),
        ([[1], [2]], [states[0], states[0]], "is being read by"),
        ([[1], [2]], [states[0], State(replace(TINY, n_layers=2))], "another shape"),
    ):
        with pytest.raises(ValueError, match=message):
            transformer.forward_rows(pieces, some)
        with pytest.raises(ValueError, match=message):
            watched.forward_rows(pieces, some)
    assert [state.pos for state in states] == [0, 0, 95]
    assert transformer.forward_rows([[1], [2, 3], [4]], states).shape == (3, TINY.vocab_size)
    assert [state.tokens[-1] for state in states] == [1, 3, 4]


@pytest.mark.compiled
@pytest.mark.parametrize(
    "name, path",
    (
        ("stories260K", "stories260K/stories260K.bin"),
        ("gqa_untied_g64", "tiny_q80/gqa_untied_g64.bin"),
        ("mha_tied_g32", "tiny_q80/mha_tied_g32.bin"),
    ),
)
def test_logits_of_the_c_programs(reference, name, path):
    transformer = Transformer(*checkpoint.load(reference / path))
    with np.load(reference / "llama2c_logits.npz") as arrays:
        tokens, expected = arrays[f"{name}_tokens"], arrays[f"{name}_logits"]
    most = 0 if checkpoint.read_header(reference / path).group_size else 1e-4
    for size in (1, 7, 16, len(tokens)):
        found = in_blocks(transformer, tokens, size)
        np.testing.assert_allclose(found, expected, atol=most, rtol=0)


def test_the_last_logits_are_the_last_row(write):
    transformer = Transformer(*checkpoint.load(write("tiny.bin", Header(1, TINY, True))))
    tokens = tokens_of(TINY, 9)
    every = transformer.forward(tokens, State(TINY), all_logits=True)
    last = transformer.forward(tokens, State(TINY))
    assert every.shape == (9, TINY.vocab_size) and last.shape == (TINY.vocab_size,)
    np.testing.assert_array_equal(last, every[-1])


@pytest.mark.compiled
def test_a_prompt_longer_than_a_block(write):
    config = replace(TINY, seq_len=BLOCK + 20)
    transformer = Transformer(*checkpoint.load(write("tiny.bin", Header(1, config, True))))
    tokens = tokens_of(config, BLOCK + 20)
    whole = transformer.forward(tokens, State(config), all_logits=True)
    np.testing.assert_array_equal(whole, in_blocks(transformer, tokens, 50))


def test_logits_belong_to_the_caller(write):
    transformer, state = Transformer(*checkpoint.load(write("t.bin", Header(0, TINY, True)))), None
    state = State(TINY)
    first = transformer.forward([1], state)
    kept = first.copy()
    transformer.forward([2], state)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.compiled
@pytest.mark.parametrize("version", (1, 2))
def test_threads_with_states_of_their_own(write, version):
    """A model is read-only: sequences that run at the same time do not disturb each other."""
    header = Header(version, TINY, True, group_size=16 if version == 2 else 0)
    transformer = Transformer(*checkpoint.load(write("tiny.bin", header)))
    sequences = [tokens_of(TINY, 40, seed) for seed in range(4)]
    expected = [in_blocks(transformer, tokens, 5) for tokens in sequences]
    found = [None] * 4

    def work(i):
        found[i] = in_blocks(transformer, sequences[i], 5)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "tokens, message",
    (
        ([], "one or more"),
        ([[1, 2]], "one or more"),
        ([1.5], "one or more"),
        ([-1], "token -1 is not in the vocabulary of 0 to 299"),
        ([3, 300], "token 300 is not in"),
        ([0] * 97, "97 tokens at position 0 do not fit into the context of 96"),
    ),
)
def test_nothing_out_of_range_reaches_a_kernel(write, tokens, message):
    transformer = Transformer(*checkpoint.load(write("tiny.bin", Header(0, TINY, True))))
    state = State(TINY)
    with pytest.raises(ValueError, match=message):
        transformer.forward(tokens, state)
    assert state.pos == 0


def test_a_full_context_and_a_foreign_state_are_refused(write):
    transformer = Transformer(*checkpoint.load(write("tiny.bin", Header(0, TINY, True))))
    state = State(TINY)
    transformer.forward([0] * 96, state)
    with pytest.raises(ValueError, match="1 tokens at position 96"):
        transformer.forward([1], state)
    with pytest.raises(ValueError, match="another shape"):
        transformer.forward([1], State(replace(TINY, n_layers=2)))


@pytest.mark.compiled
@pytest.mark.parametrize("problem", (MemoryError(), KeyboardInterrupt()), ids=repr)
def test_a_state_survives_what_stops_its_growth(write, monkeypatch, problem):
    """A chat continues with the same state after a Ctrl-C."""
    config = Config(48, 80, 3, 6, 2, 300, 700)
    model = Transformer(*checkpoint.load(write("x.bin", Header(1, config, True))))
    tokens = list(range(3, 103))
    state, other = State(config), State(config)
    model.forward(tokens[:60], state), model.forward(tokens[:60], other)

    def failing(*arrays):
        raise problem

    monkeypatch.setattr("llama2np.model.state.aligned_zeros", failing)
    with pytest.raises(type(problem)):
        model.forward([5] * 600, state)
    monkeypatch.undo()
    assert state.pos == 60
    expected = model.forward(tokens[60:], other)
    np.testing.assert_array_equal(model.forward(tokens[60:], state), expected)


def test_a_position_before_the_first_is_refused(write):
    transformer = Transformer(*checkpoint.load(write("tiny.bin", Header(1, TINY, True))))
    state = State(TINY)
    state.pos = -1  # the kernels would write in front of the cache
    with pytest.raises(ValueError, match="at position -1 do not fit"):
        transformer.forward([1], state)


@pytest.mark.parametrize("copied", (deepcopy, lambda x: pickle.loads(pickle.dumps(x))))
def test_a_copy_stands_on_its_own(write, copied):
    """The kernels read weights by address: a copy's are its own."""
    original = Transformer(*checkpoint.load(write("x.bin", Header(1, TINY, False))))
    expected = original.forward([5], State(TINY))
    twin = copied(original)
    original.weights.layers[0].wq.w[:] = 0
    np.testing.assert_array_equal(twin.forward([5], State(TINY)), expected)
    hooked = copied(twin.with_hooks([Trace("resid_post")]))
    np.testing.assert_array_equal(hooked.forward([5], State(TINY)), expected)
    assert hooked.hooks[0]["resid_post", 2].shape == (1, TINY.dim)
    assert type(copied(Louder(TINY, twin.weights))) is Louder


def test_an_engine_that_does_not_exist_is_refused(write):
    loaded = checkpoint.load(write("x.bin", Header(1, TINY, False)))
    with pytest.raises(ValueError, match="engine must be 'compiled' or 'numpy', not 'torch'"):
        Transformer(*loaded, engine="torch")
