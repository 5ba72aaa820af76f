"""The program in NumPy: against naive.py, the C programs' answers, and the compiled engine."""

import json
from pathlib import Path

import naive
import numpy as np
import pytest
from conftest import TINY, random_tensors

from llama2np import Edit, Llama, Trace, box
from llama2np.formats import checkpoint
from llama2np.formats.checkpoint import Header
from llama2np.model import numpy_engine
from llama2np.model.transformer import State, Transformer

HEADERS = {"float32": Header(1, TINY, True), "int8": Header(2, TINY, False, 16)}
TOKENS = np.random.default_rng(1).integers(0, TINY.vocab_size, 70)


def in_blocks(transformer, tokens, size):
    state = State(transformer.config)
    blocks = [tokens[at : at + size] for at in range(0, len(tokens), size)]
    return np.concatenate([transformer.forward(b, state, all_logits=True) for b in blocks])


@pytest.fixture(params=HEADERS)
def both(request, write):
    """The same network in NumPy and compiled."""
    loaded = checkpoint.load(write("tiny.bin", HEADERS[request.param]))
    return Transformer(*loaded, engine="numpy"), Transformer(*loaded)


def close(found, expected):
    """Sums have another order; in int8, an activation may then be rounded to its neighbour."""
    differences = np.abs(found - expected) / np.std(expected)
    assert differences.max() < 0.1 and differences.mean() < 0.01


@pytest.mark.parametrize("size", (1, 7, 70))
def test_float32_equals_naive(write, size):
    header = HEADERS["float32"]
    transformer = Transformer(*checkpoint.load(write("x.bin", header)), engine="numpy")
    expected = naive.forward(TINY, random_tensors(header), TOKENS)
    found = in_blocks(transformer, TOKENS, size)
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=1e-4)


def test_int8_products_are_exact():
    random = np.random.default_rng(0)
    for group in (1, 4, 7, 32, 64):
        q, x = (
            random.integers(-127, 128, (9, 3 * group), np.int8),
            random.standard_normal((5, 3 * group)),
        )
        scales, x = random.random((9, 3), np.float32), x.astype(np.float32)
        x[0, :group] = 0
        rounded, x_scales = numpy_engine.quantize(x, group)
        for found, expected in zip((rounded, x_scales), naive.quantize(x, group), strict=True):
            np.testing.assert_array_equal(found, expected)
        found = numpy_engine.multiply(numpy_engine.Int8(q, scales), x)
        np.testing.assert_array_equal(found, naive.matmul_int8(q, scales, rounded, x_scales))


@pytest.mark.compiled
@pytest.mark.parametrize("size", (1, 7, 70))
def test_it_equals_the_compiled_engine(both, size):
    numpy, compiled = (in_blocks(transformer, TOKENS, size) for transformer in both)
    close(numpy, compiled)


@pytest.mark.parametrize(
    "name, path",
    (
        ("stories260K", "stories260K/stories260K.bin"),
        ("gqa_untied_g64", "tiny_q80/gqa_untied_g64.bin"),
        ("mha_tied_g32", "tiny_q80/mha_tied_g32.bin"),
    ),
)
def test_logits_of_the_c_programs(reference, name, path):
    transformer = Transformer(*checkpoint.load(reference / path), engine="numpy")
    with np.load(reference / "llama2c_logits.npz") as arrays:
        tokens, expected = arrays[f"{name}_tokens"], arrays[f"{name}_logits"]
    for size in (1, 7, len(tokens)):
        found = in_blocks(transformer, tokens, size)
        if checkpoint.read_header(reference / path).group_size:
            np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
            close(found, expected)
        else:
            np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


GOLDEN = json.loads((Path(__file__).parent / "golden/box.json").read_text())


@pytest.mark.parametrize("name", box.NAMES)
def test_it_tells_the_stories_of_the_c_programs(name):
    """The first 40 tokens of the greedy ones; all of them take seconds."""
    loaded = Llama.load(name)
    model = Llama(
        Transformer(loaded.config, loaded.transformer.weights, engine="numpy"), loaded.tokenizer
    )
    told = [
        case["stdout"] for case in GOLDEN if case["model"] == name and case["args"] == ["-t", "0"]
    ]
    assert told
    for story in told:
        text = model.generate("", temperature=0, max_new_tokens=40).read()
        assert len(text) > 60 and story.startswith(text)


def test_rows_of_several_sequences(both):
    states = [[State(TINY) for _ in range(3)] for _ in both]
    pieces = [TOKENS[:1], TOKENS[5:14], TOKENS[20:22]]
    found = []
    for transformer, some in zip(both, states, strict=True):
        for i, state in enumerate(some):
            transformer.forward(TOKENS[: 20 * i + 1], state)
        found.append(transformer.forward_rows(pieces, some))
    close(*found)
    for one, other in zip(*states, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        close(one.keys, other.keys)
        close(one.values, other.values)


def test_greedy_is_forward_and_the_most_likely_in_turn(both):
    transformer = both[0]
    one, many = State(TINY), State(TINY)
    transformer.forward(TOKENS[:9], one), transformer.forward(TOKENS[:9], many)
    tokens, logits = transformer.greedy(5, many, 12)
    token = 5
    for i in range(12):
        assert tokens[i] == token
        row = transformer.forward([token], one)
        np.testing.assert_array_equal(logits[i], row)
        token = int(row.argmax())
    assert many.pos == one.pos == 21 and many.tokens.tolist() == one.tokens.tolist()


def test_hooks_see_the_same_arrays_and_change_them(both):
    traces = [Trace() for _ in both]
    for transformer, trace in zip(both, traces, strict=True):
        edit = Edit("mlp", lambda array, place: array * (place.positions[:, None] % 3), layers=1)
        state = State(TINY)
        for size in (30, 1, 1, 8):
            piece = TOKENS[state.pos : state.pos + size]
            transformer.with_hooks([edit, trace]).forward(piece, state)
    assert list(traces[0]) == list(traces[1])
    for name in traces[0]:
        assert traces[0][name].shape == traces[1][name].shape
        close(traces[0][name], traces[1][name])
        np.testing.assert_array_equal(traces[0].positions(name), traces[1].positions(name))


def test_a_walk(both):
    steps = [list(transformer.walk(TOKENS[:5])) for transformer in both]
    for (one, arrays), (other, others) in zip(*steps, strict=True):
        assert (one.op, one.layer, list(arrays)) == (other.op, other.layer, list(others))
    close(steps[0][-1][1]["logits"], steps[1][-1][1]["logits"])


def test_a_state_may_go_from_one_engine_to_the_other(both):
    numpy, compiled = both
    state = State(TINY)
    numpy.forward(TOKENS[:20], state)
    compiled.forward(TOKENS[20:40], state)
    numpy.forward(TOKENS[40:41], state)
    expected = State(TINY)
    compiled.forward(TOKENS[:41], expected)
    close(compiled.forward(TOKENS[41:50], state), compiled.forward(TOKENS[41:50], expected))


WITHOUT = """
import sys
sys.modules["numba"] = sys.modules["llvmlite"] = None
import numpy as np
from llama2np import Edit, State, Transformer
from llama2np.formats import checkpoint
transformer = Transformer(*checkpoint.load(sys.argv[1]), engine="numpy")
print(transformer.forward([5, 6, 7], State(transformer.config)).argmax())
print(len(transformer.greedy(5, State(transformer.config), 3)[0]))
try:
    Transformer(*checkpoint.load(sys.argv[1]))
except ValueError as error:
    print(type(error).__name__)
"""


def test_it_needs_no_numba(both, write, python):
    child = python("-c", WITHOUT, write("x.bin", HEADERS["float32"]))
    out, err = child.communicate(timeout=300)
    first, *rest = out.splitlines()
    assert not err and rest == ["3", "ValueError"], (out, err)
    loaded = checkpoint.load(write("y.bin", HEADERS["float32"]))
    logits = Transformer(*loaded, engine="numpy").forward([5, 6, 7], State(TINY))
    assert int(first) == logits.argmax()
