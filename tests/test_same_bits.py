"""The bits of a sequence's logits do not depend on how it is read, by how many, or with whom."""

from functools import cache
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
from conftest import EXHAUSTIVE, examples, parameters, random_tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from ops import random_blocks

from llama2np.formats import checkpoint
from llama2np.formats.checkpoint import Header
from llama2np.kernels.runtime import pool
from llama2np.model.config import Config
from llama2np.model.hooks import POINTS, Edit, Trace
from llama2np.model.transformer import State, Transformer
from llama2np.model.weights import Weights

# Wide enough for threads to share each matrix of one token; widths that few tiles divide.
CONFIG = Config(192, 352, 2, 6, 2, 300, 250)
HEADERS = {"float32": Header(1, CONFIG, True), "int8": Header(2, CONFIG, False, 8)}
KINDS = (*HEADERS, "blocks", "blocks, int8x2")
PROMPT, LENGTH = 40, 140
NOTHING = [Trace(*POINTS), *(Edit(name, lambda array, place: array.copy()) for name in POINTS)]
pytestmark = pytest.mark.compiled


def members(count):
    """Every call has this many threads, however small it is and however busy the machine."""
    always = SimpleNamespace(threads=lambda n, own=1: n, waited=lambda _: None)
    return patch.multiple(pool, threads=lambda: count, _SHARED_WORK=0), patch.object(
        pool.POOL, "backoff", always
    )


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    """The sequence has several."""
    with patch("llama2np.model.state._CHUNK", 64):
        yield


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """By kind: a network, a sequence that it continues greedily, and its logits, token by token."""
    path = tmp_path_factory.mktemp("bits") / "x.bin"

    @cache
    def network(kind):
        header = HEADERS.get(kind, HEADERS["float32"])
        checkpoint.save(path, header, random_tensors(header))
        config, weights = checkpoint.load(path)
        if kind.startswith("blocks"):
            weights = in_blocks(weights)
        with patch("llama2np.model.state._CHUNK", 512):
            activations = "int8x2" if kind.endswith("int8x2") else "int8"
            transformer = Transformer(config, weights, activations=activations)
            state = State(CONFIG)
        pool.set_threads(1)
        tokens, logits = list(np.random.default_rng(0).integers(0, 300, PROMPT)), []
        while len(logits) < LENGTH:
            logits.append(transformer.forward([tokens[state.pos]], state))
            if state.pos == len(tokens):
                tokens.append(int(logits[-1].argmax()))
        pool.set_threads(pool.max_threads())
        return transformer, np.array(tokens[:LENGTH]), np.stack(logits)

    return network


def in_blocks(weights):
    """Norms of a network, and random matrices in two formats; those of a step differ.

    The second format is Q5_1, or float32 as it was: then no more kernels must be compiled.
    """
    tensors = dict(weights)
    for i, (name, matrix) in enumerate(weights.matrices.items()):
        kind, size = (("Q8_0", 1e-3), ("Q5_1", 1e-2))[i % 2]
        if kind == "Q8_0" or EXHAUSTIVE:
            tensors[name] = random_blocks(kind, *matrix.shape, i, size)
    return Weights(tensors)


def read(transformer, piece, state, way, random):
    """Read a piece: (which of its rows, their logits)."""
    count, every = len(piece), np.arange(len(piece))
    if way == "hooks":
        for hook in NOTHING[:1]:
            hook.clear()
        return every, transformer.with_hooks(NOTHING).forward(piece, state, all_logits=True)
    if way == "draft":  # more than is accepted, and the rest is forgotten
        draft = np.concatenate([piece, random.integers(0, 300, random.integers(1, 12))])
        logits = transformer.forward(draft, state, all_logits=True)
        state.truncate(state.pos - len(draft) + count)
        return every, logits[:count]
    if way == "greedy" and state.pos >= PROMPT and count <= 30:
        tokens, logits = transformer.greedy(int(piece[0]), state, count)
        np.testing.assert_array_equal(tokens, piece)
        return every, logits
    if way == "fork":
        transformer.forward(random.integers(0, 300, 9), state.fork())
    if way == "strangers":
        states, pieces = [], []
        for length, more in random.integers(1, 70, (random.integers(1, 5), 2)):
            states.append(State(CONFIG))
            transformer.forward(random.integers(0, 300, length), states[-1])
            pieces.append(random.integers(0, 300, more if random.integers(2) else 1))
        at = int(random.integers(len(states) + 1))
        states.insert(at, state), pieces.insert(at, piece)
        return every[-1:], transformer.forward_rows(pieces, states)[at : at + 1]
    if way == "last":
        return every[-1:], transformer.forward(piece, state)[None]
    return every, transformer.forward(piece, state, all_logits=True)


def check(network, cuts, count, seed):
    """Read the sequence in pieces of these lengths, each in its way, and the rest at once."""
    (transformer, tokens, expected), state = network, State(CONFIG)
    random = np.random.default_rng(seed)
    threads, contention = members(count)
    with threads, contention:
        for length, way in [*cuts, (LENGTH, "all")]:
            start = state.pos
            piece = tokens[start : start + length]
            if len(piece):
                rows, logits = read(transformer, piece, state, way, random)
                np.testing.assert_array_equal(logits, expected[start + rows])
    assert state.tokens.tolist() == tokens.tolist()


WAYS = ("all", "last", "hooks", "draft", "greedy", "fork", "strangers")
CUTS = st.lists(
    st.tuples(st.sampled_from((1, 1, 2, 3, 6, 7, 8, 9, 12, 17, 30, 65)), st.sampled_from(WAYS))
)


@pytest.mark.parametrize("count", parameters((1, 2, 5), (1, 5)))
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=examples(25))
@given(cuts=CUTS, seed=st.integers(0, 2**32))
def test_the_bits_are_those_of_one_token_after_the_other(networks, kind, count, cuts, seed):
    check(networks(kind), cuts, count, seed)


@pytest.mark.parametrize("count", parameters((1, 2, 5), [2]))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_a_prompt_in_pieces_of_1_1_3_12_30(networks, kind, count, way):
    check(networks(kind), [(length, way) for length in (1, 1, 3, 12, 30, 7, 8, 9)], count, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gets_the_bits_of_each_alone(networks, kind):
    """Sequences of lengths of their own, token after token; two are forks of one prompt."""
    transformer, tokens, _ = networks(kind)
    states = [State(CONFIG) for _ in range(7)]
    for i, state in enumerate(states):
        transformer.forward(tokens[i : 10 * i + 5], state)
    states.append(states[-1].fork())
    alone = [state.fork() for state in states]
    for step in range(12):
        rows = [[(17 * i + step) % 300] for i in range(8)]
        found = transformer.forward_rows(rows, states)
        expected = [transformer.forward(*each) for each in zip(rows, alone, strict=True)]
        np.testing.assert_array_equal(found, expected)
    for one, other in zip(states, alone, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.keys, other.keys)
        np.testing.assert_array_equal(one.values, other.values)
