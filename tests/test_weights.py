"""Weights: what the kernels would misread is refused; number formats in one network."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from conftest import TINY

from llama2np.formats import checkpoint
from llama2np.formats.checkpoint import Header
from llama2np.model.transformer import State, Transformer
from llama2np.model.weights import Dense, Weights


def in_blocks(transformer, tokens, size):
    """All logits of a sequence that is read in blocks."""
    state = State(transformer.config)
    blocks = [tokens[at : at + size] for at in range(0, len(tokens), size)]
    return np.concatenate([transformer.forward(b, state, all_logits=True) for b in blocks])


def tokens_of(config, count, seed=0):
    return np.random.default_rng(seed).integers(0, config.vocab_size, count)


@pytest.mark.parametrize("version, group", ((1, 0), (2, 16)))
def test_weights_of_another_shape_are_refused(write, version, group):
    """The kernels take the lengths of rows on trust."""
    config, weights = checkpoint.load(write("x.bin", Header(version, TINY, False, group)))
    other = replace(TINY, vocab_size=301)
    with pytest.raises(ValueError, match=r"embedding has shape \(300, 48\), expected \(301, 48\)"):
        Transformer(other, weights)
    fewer = {name: t for name, t in weights.items() if not name.startswith("layers.2.")}
    with pytest.raises(ValueError, match="there is no attn_norm of layer 2"):
        Transformer(config, Weights(fewer))
    with pytest.raises(ValueError, match="the network does not use attn_norm of layer 2"):
        Transformer(replace(TINY, n_layers=2), weights)
    first, matrix = weights.layers[0], np.zeros((48, 48), np.float32)
    for name, wrong, message in (
        ("w_down", first.w_up, "has shape"),
        ("ffn_norm", first.ffn_norm[:-1], "has shape"),
        ("wq", matrix, "is of type ndarray, expected Dense or Int8"),
        ("ffn_norm", Dense(matrix), "is of type Dense, expected a float32 array"),
    ):
        with pytest.raises(ValueError, match=f"{name} of layer 2 {message}"):
            Transformer(config, Weights({**weights, f"layers.2.{name}": wrong}))


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
    with pytest.raises(ValueError, match=rf"{name} of layer 2 is float.*ascontiguousarray of flo"):
        Transformer(config, Weights({**weights, f"layers.2.{name}": weight}))


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
    wq = weights.layers[0].wq
    wrong = Weights({**weights, "layers.0.wq": replace(wq, scales=change(wq.scales))})
    with pytest.raises(ValueError, match=message):
        Transformer(config, wrong)


def test_weights_cannot_be_exchanged(write):
    """Their addresses are in use."""
    transformer = Transformer(*checkpoint.load(write("x.bin", Header(1, TINY, False))))
    with pytest.raises(AttributeError):
        transformer.weights = transformer.weights


def other_groups(matrix):
    """The same values in groups of 8."""
    return replace(matrix, scales=np.repeat(matrix.scales, 2, axis=1))


@pytest.mark.parametrize(
    "version, name, change",
    (
        (1, "w_up", lambda matrix, rounded: rounded),
        (2, "wk", lambda matrix, rounded: other_groups(matrix)),
    ),
    ids=("int8 and float32", "two group sizes"),
)
def test_matrices_of_different_kinds_in_one_network(write, version, name, change):
    """All but the changed matrix stay as they are."""
    group = 16 if version == 2 else 0
    config, weights = checkpoint.load(write("x.bin", Header(version, TINY, False, group)))
    _, rounded = checkpoint.load(write("y.bin", Header(2, TINY, False, 16)))
    name = f"layers.0.{name}"
    changed = change(weights[name], rounded[name])
    mixed = Transformer(config, Weights({**weights, name: changed}))
    one, many = State(config), State(config)
    tokens = [1, 5, 9, 7]
    found = np.stack([mixed.forward([token], one) for token in tokens])
    np.testing.assert_array_equal(found, mixed.forward(tokens, many, all_logits=True))
    assert (found[-1] != Transformer(config, weights).forward(tokens, State(config))).any()


@pytest.mark.parametrize("dtype", (ml_dtypes.bfloat16, np.float16))
@pytest.mark.parametrize("engine, sizes", (("compiled", (1, 2, 3, 8, 9, 64)), ("numpy", (9, 64))))
def test_half_precision_gives_the_bits_of_float32_weights_of_its_values(
    write, engine, sizes, dtype
):
    config, weights = checkpoint.load(write("x.bin", Header(1, TINY, False)))
    halves = {name: matrix.w.astype(dtype) for name, matrix in weights.matrices.items()}
    kinds = halves, {name: half.astype(np.float32) for name, half in halves.items()}
    half, wide = (
        Transformer(
            config, Weights({**weights, **{n: Dense(w) for n, w in k.items()}}), engine=engine
        )
        for k in kinds
    )
    assert half.weights.nbytes < 0.6 * wide.weights.nbytes
    tokens = tokens_of(TINY, 96)
    for size in sizes:
        found, expected = (in_blocks(transformer, tokens, size) for transformer in (half, wide))
        np.testing.assert_array_equal(found, expected)
    states = [[State(TINY) for _ in range(3)] for _ in range(2)]
    found, expected = (
        transformer.forward_rows([tokens[:1], tokens[:5], tokens[:40]], some)
        for transformer, some in zip((half, wide), states, strict=True)
    )
    np.testing.assert_array_equal(found, expected)
    for one, other in zip(
        half.greedy(5, State(TINY), 9), wide.greedy(5, State(TINY), 9), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", (np.float64, np.int8, np.int16, bool))
def test_a_dense_matrix_of_another_type_is_refused(write, dtype):
    config, weights = checkpoint.load(write("x.bin", Header(1, TINY, False)))
    wrong = Weights({**weights, "layers.1.wk": Dense(weights.layers[1].wk.w.astype(dtype))})
    with pytest.raises(ValueError, match=f"wk of layer 1 is {np.dtype(dtype)} with strides"):
        Transformer(config, wrong)


def test_a_matrix_of_another_class_is_refused(write):
    class Adapted:
        """A low-rank change beside a matrix."""

        shape = (48, 48)

        def __call__(self, x, out):
            raise NotImplementedError

    config, weights = checkpoint.load(write("x.bin", Header(1, TINY, False)))
    message = "wq of layer 0 is of type Adapted, expected Dense or Int8"
    for engine in ("compiled", "numpy"):
        with pytest.raises(ValueError, match=message):
            Transformer(config, Weights({**weights, "layers.0.wq": Adapted()}), engine=engine)
