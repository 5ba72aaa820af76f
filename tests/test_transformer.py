"""The forward pass against naive.py and against what the C programs computed."""

import pickle
import threading
from copy import deepcopy
from dataclasses import replace

import naive
import numpy as np
import pytest
from conftest import TINY, random_tensors

from llama2np import box, checkpoint, kernels
from llama2np.checkpoint import Header
from llama2np.model.config import Config
from llama2np.model.hooks import Trace
from llama2np.model.transformer import BLOCK, State, Transformer
from llama2np.watched import Watched
from llama2np.model.weights import Dense


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


class Counting(Transformer):
    """A network with a step of its own: so it goes step by step, also for one token."""

    seen = 0

    def feed_forward(self, layer, s):
        self.seen += len(s.x)
        super().feed_forward(layer, s)


@pytest.mark.parametrize("version", (0, 2))
def test_a_token_in_one_kernel_is_its_steps(write, version):
    header = Header(version, TINY, False, group_size=16 if version == 2 else 0)
    config, weights = checkpoint.load(write("tiny.bin", header))
    tokens = tokens_of(TINY, 90)
    stepping = Counting(config, weights)
    stepped = in_blocks(stepping, tokens, 1)
    assert stepping.seen == 90 * TINY.n_layers
    np.testing.assert_array_equal(in_blocks(Transformer(config, weights), tokens, 1), stepped)


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
    for size in (1, 7, 16, len(tokens)):
        found = in_blocks(transformer, tokens, size)
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


@pytest.mark.compiled
@pytest.mark.parametrize("name", box.NAMES)
def test_a_few_tokens_at_once_are_those_one_by_one(name):
    """To the bit, in a network whose matrices threads share: what speculative decoding rests on."""
    transformer = Transformer(*checkpoint.load(name))
    tokens = tokens_of(transformer.config, 6 * kernels.FEW)  # past a block of keys
    alone = in_blocks(transformer, tokens, 1)
    for size in (2, 3, kernels.INT8_FEW, kernels.INT8_FEW + 1, kernels.FEW):
        np.testing.assert_array_equal(in_blocks(transformer, tokens, size), alone)


def test_the_last_logits_are_the_last_row(write):
    transformer = Transformer(*checkpoint.load(write("tiny.bin", Header(1, TINY, True))))
    tokens = tokens_of(TINY, 9)
    every = transformer.forward(tokens, State(TINY), all_logits=True)
    last = transformer.forward(tokens, State(TINY))
    assert every.shape == (9, TINY.vocab_size) and last.shape == (TINY.vocab_size,)
    np.testing.assert_allclose(last, every[-1], atol=1e-5)


@pytest.mark.compiled
def test_a_prompt_longer_than_a_block(write):
    from dataclasses import replace

    config = replace(TINY, seq_len=BLOCK + 20)
    transformer = Transformer(*checkpoint.load(write("tiny.bin", Header(1, config, True))))
    tokens = tokens_of(config, BLOCK + 20)
    whole = transformer.forward(tokens, State(config), all_logits=True)
    np.testing.assert_allclose(whole, in_blocks(transformer, tokens, 50), atol=1e-4)


def test_logits_belong_to_the_caller(write):
    transformer, state = Transformer(*checkpoint.load(write("t.bin", Header(0, TINY, True)))), None
    state = State(TINY)
    first = transformer.forward([1], state)
    kept = first.copy()
    transformer.forward([2], state)
    np.testing.assert_array_equal(first, kept)


def test_the_cache_grows_with_use():
    state = State(TINY)
    assert state.keys[0].nbytes == state.values[0].nbytes == 0
    state.reserve(1)
    assert state.keys[0].shape == (2, 1, 8, 64) and state.values[0].shape == (2, 64, 8)
    state.keys[2][1, 0, 7, 63] = state.values[2][1, 63, 7] = 5
    state.reserve(65)
    assert state.keys[0].shape == (2, 2, 8, 64) and state.values[0].shape == (2, 128, 8)
    assert state.keys[2][1, 0, 7, 63] == state.values[2][1, 63, 7] == 5


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
    from dataclasses import replace

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
    """Chat goes on with the same state after a Ctrl-C."""
    config = Config(48, 80, 3, 6, 2, 300, 700)
    model = Transformer(*checkpoint.load(write("x.bin", Header(1, config, True))))
    tokens = list(range(3, 103))
    state, other = State(config), State(config)
    model.forward(tokens[:60], state), model.forward(tokens[:60], other)

    def failing(*arrays):
        raise problem

    monkeypatch.setattr("llama2np.model.transformer._copy", failing)
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


@pytest.mark.parametrize("version, group", ((1, 0), (2, 16)))
def test_weights_of_another_shape_are_refused(write, version, group):
    """The kernels take the lengths of rows on trust."""
    config, weights = checkpoint.load(write("x.bin", Header(version, TINY, False, group)))
    other = replace(TINY, vocab_size=301)
    with pytest.raises(ValueError, match=r"embedding has shape \(300, 48\), expected \(301, 48\)"):
        Transformer(other, weights)
    with pytest.raises(ValueError, match="there are 2 layers, expected 3"):
        Transformer(config, replace(weights, layers=weights.layers[:2]))
    first, *rest = weights.layers
    for change in ({"w_down": first.w_up}, {"ffn_norm": first.ffn_norm[:-1]}):
        wrong = replace(weights, layers=(*rest, replace(first, **change)))
        with pytest.raises(ValueError, match=f"{next(iter(change))} of layer 2 has shape"):
            Transformer(config, wrong)
    wrong = replace(weights, layers=(*rest, replace(first, wq=np.zeros((48, 48), np.float32))))
    with pytest.raises(ValueError, match="wq of layer 2 is of type ndarray, expected Dense or"):
        Transformer(config, wrong)


@pytest.mark.parametrize(
    "name, weight",
    (
        ("wo", Dense(np.ones((48, 48)))),
        ("wo", Dense(np.ones((48, 48), np.float32).T[:, ::-1])),
        ("ffn_norm", np.ones(48)),
        ("ffn_norm", np.ones(96, np.float32)[::2]),
    ),
    ids=("float64", "reversed", "norm in float64", "norm with gaps"),
)
def test_weights_that_the_kernels_would_misread_are_refused(write, name, weight):
    config, weights = checkpoint.load(write("x.bin", Header(1, TINY, False)))
    layers = (*weights.layers[:2], replace(weights.layers[2], **{name: weight}))
    with pytest.raises(ValueError, match=rf"{name} of layer 2 is float.*ascontiguousarray of flo"):
        Transformer(config, replace(weights, layers=layers))


@pytest.mark.parametrize(
    "change, message",
    (
        (lambda scales: scales[:47], r"wq of layer 0: .* have shape \(47, 3\)"),
        (lambda scales: scales[:, 0].copy(), r"have shape \(48,\)"),
        (lambda scales: scales.astype(float), "scales of wq of layer 0 is float64"),
    ),
)
def test_scales_that_do_not_fit_are_refused(write, change, message):
    config, weights = checkpoint.load(write("x.bin", Header(2, TINY, False, 16)))
    first, *rest = weights.layers
    wq = replace(first.wq, scales=change(first.wq.scales))
    with pytest.raises(ValueError, match=message):
        Transformer(config, replace(weights, layers=(replace(first, wq=wq), *rest)))


@pytest.mark.parametrize("copied", (deepcopy, lambda x: pickle.loads(pickle.dumps(x))))
def test_a_copy_stands_on_its_own(write, copied):
    """The kernels read weights by address: a copy's are its own."""
    original = Transformer(*checkpoint.load(write("x.bin", Header(1, TINY, False))))
    expected = original.forward([5], State(TINY))
    twin = copied(original)
    original.weights.layers[0].wq.w[:] = 0
    np.testing.assert_array_equal(twin.forward([5], State(TINY)), expected)
    watched = copied(Watched(twin, [Trace("resid_post")]))
    np.testing.assert_array_equal(watched.forward([5], State(TINY)), expected)
    assert watched.hooks[0]["resid_post", 2].shape == (1, TINY.dim)
    assert type(copied(Counting(TINY, twin.weights))) is Counting


def test_weights_cannot_be_exchanged(write):
    """Their addresses are in use."""
    transformer = Transformer(*checkpoint.load(write("x.bin", Header(1, TINY, False))))
    with pytest.raises(AttributeError):
        transformer.weights = transformer.weights


class Adapted:
    """A matrix of another kind: a low-rank change beside a Dense."""

    def __init__(self, matrix, down, up):
        self.matrix, self.down, self.up, self.shape = matrix, down, up, matrix.shape

    def __call__(self, x, out):
        self.matrix(x, out)
        out += x @ self.down.T @ self.up.T


def other_groups(matrix):
    """The same values in groups of 8."""
    return replace(matrix, scales=np.repeat(matrix.scales, 2, axis=1))


def adapted(matrix):
    random = np.random.default_rng(1)
    return Adapted(matrix, *(random.random(s, np.float32) for s in ((2, 48), (48, 2))))


@pytest.mark.parametrize(
    "version, change",
    (
        (1, lambda layer, rounded: replace(layer, w_up=rounded.w_up)),
        (2, lambda layer, rounded: replace(layer, wk=other_groups(layer.wk))),
        (1, lambda layer, rounded: replace(layer, wq=adapted(layer.wq))),
    ),
    ids=("int8 and float32", "two group sizes", "a kind of one's own"),
)
def test_matrices_of_different_kinds_in_one_network(write, version, change):
    """They go step by step, and all but the changed matrix stay as they are."""
    group = 16 if version == 2 else 0
    config, weights = checkpoint.load(write("x.bin", Header(version, TINY, False, group)))
    _, rounded = checkpoint.load(write("y.bin", Header(2, TINY, False, 16)))
    first, *rest = weights.layers
    layers = (change(first, rounded.layers[0]), *rest)
    mixed = Transformer(config, replace(weights, layers=layers))
    one, many = State(config), State(config)
    tokens = [1, 5, 9, 7]
    found = np.stack([mixed.forward([token], one) for token in tokens])
    np.testing.assert_allclose(found, mixed.forward(tokens, many, all_logits=True), atol=1e-5)
    assert (found[-1] != Transformer(config, weights).forward(tokens, State(config))).any()
