"""An architecture that the package does not have, described here: all that serves Llama serves it.

LayerNorm and biases everywhere, attention and feed-forward side by side on one input, rotary
positions on half of each head, in halves: much as Phi-2 is.
"""

from dataclasses import replace

import ml_dtypes
import naive
import numpy as np
import pytest
from conftest import write_tokenizer

from llama2np import Edit, Llama, Tokenizer, Trace
from llama2np.bench.arithmetic import bytes_to_generate, operations_to_read
from llama2np.model.config import Config
from llama2np.model.transformer import State, Transformer
from llama2np.model.weights import Dense, Int8, Weights

CONFIG = Config(
    dim=48, hidden_dim=80, n_layers=2, n_heads=6, n_kv_heads=6, vocab_size=300, seq_len=96,
    rotary_dim=4, rope_halves=1,
)  # fmt: skip
TOKENS = np.random.default_rng(2).integers(3, 300, 60)
ENGINES = ("compiled", "numpy")


def side_by_side(b, c):
    x = b.embed("embedding")
    for b.layer in range(c.n_layers):
        h = b.layernorm(x, "attn_norm")
        q, k, v = b.linear(h, "wq", "wk", "wv")
        q, k = b.rope(q, k)
        attn = b.linear(b.attention(q, k, v), "wo", name="attn_out")
        mlp = b.linear(b.gelu(b.linear(h, "w_up")), "w_down", name="mlp_out")
        x = b.add(x, b.add(attn, mlp), name="resid_post")
    b.logits(b.layernorm(x, "final_norm"), "classifier")


def random_weights(dtype=np.float32):
    random, c = np.random.default_rng(0), CONFIG
    shapes = {"embedding": (c.vocab_size, c.dim), "classifier": (c.vocab_size, c.dim)}
    tensors = {name: random.standard_normal(shape) * 0.5 for name, shape in shapes.items()}
    tensors["classifier.bias"] = random.standard_normal(c.vocab_size)
    for i in range(c.n_layers):
        for name, (d, n) in {
            **dict.fromkeys(("wq", "wk", "wv", "wo"), (c.dim, c.dim)),
            **{"w_up": (c.hidden_dim, c.dim), "w_down": (c.dim, c.hidden_dim)},
        }.items():
            tensors[f"layers.{i}.{name}"] = random.standard_normal((d, n)) * 0.2
            tensors[f"layers.{i}.{name}.bias"] = random.standard_normal(d) * 0.3
        tensors[f"layers.{i}.attn_norm"] = random.standard_normal(c.dim) * 0.2 + 1
        tensors[f"layers.{i}.attn_norm.bias"] = random.standard_normal(c.dim) * 0.2
    tensors["final_norm"] = random.standard_normal(c.dim) * 0.2 + 1
    tensors["final_norm.bias"] = random.standard_normal(c.dim) * 0.2
    return Weights(
        {
            name: Dense(t.astype(dtype)) if t.ndim == 2 else t.astype(np.float32)
            for name, t in tensors.items()
        }
    )


def by_hand(weights, tokens):
    """All logits (T, vocab_size) in float64."""
    c, w = CONFIG, {n: np.asarray(getattr(t, "w", t), float) for n, t in weights.items()}

    def times(x, name):
        return x @ w[name].T + w[f"{name}.bias"]

    def norm(x, name):
        return naive.layernorm(x, w[name], w[f"{name}.bias"], c.norm_eps)

    angles = naive.rope_angles(1e4 ** -np.array([0, 0.5]), 0, len(tokens))
    x = w["embedding"][tokens]
    for i in range(c.n_layers):
        h = norm(x, f"layers.{i}.attn_norm")
        q, k = (
            naive.rotate(times(h, f"layers.{i}.{name}"), angles, c.head_dim, 4, halves=True)
            for name in ("wq", "wk")
        )
        mixed = naive.attention(q, k, times(h, f"layers.{i}.wv"), c.head_dim, 0)
        up = naive.gelu(times(h, f"layers.{i}.w_up"), exact=False)
        x = x + times(mixed, f"layers.{i}.wo") + times(up, f"layers.{i}.w_down")
    return times(norm(x, "final_norm"), "classifier")


@pytest.fixture(scope="module")
def weights():
    return random_weights()


@pytest.fixture(params=ENGINES)
def network(request, weights):
    return Transformer(CONFIG, weights, side_by_side, engine=request.param)


def in_pieces(network, sizes=(1, 1, 3, 12, 30), state=None):
    state, found = state or State(CONFIG), []
    for size in (*sizes, len(TOKENS) - sum(sizes)):
        piece = TOKENS[state.pos : state.pos + size]
        found.append(network.forward(piece, state, all_logits=True))
    return np.concatenate(found)


def same(network, found, expected):
    """To the bit, if it is compiled; NumPy's products add in another order for other shapes."""
    most = 0 if network._engine_name == "compiled" else 1e-4
    np.testing.assert_allclose(found, expected, rtol=most, atol=most)


@pytest.mark.parametrize("dtype", (np.float32, ml_dtypes.bfloat16))
@pytest.mark.parametrize("engine", ENGINES)
def test_it_computes_what_is_written_by_hand(engine, dtype):
    weights = random_weights(dtype)
    network = Transformer(CONFIG, weights, side_by_side, engine=engine)
    found = network.forward(TOKENS, State(CONFIG), all_logits=True)
    np.testing.assert_allclose(found, by_hand(weights, TOKENS), rtol=1e-4, atol=2e-4)
    same(network, in_pieces(network), found)


def test_int8_matrices_beside_it(weights):
    """Any matrix may have any number format; its bias stays float32."""

    def rounded(name, tensor):
        if isinstance(tensor, np.ndarray) or "w_" not in name:
            return tensor
        q, scales = naive.quantize(tensor.w, 16)
        return Int8(q, scales)

    mixed = Weights({name: rounded(name, tensor) for name, tensor in weights.items()})
    found = [
        in_pieces(Transformer(CONFIG, mixed, side_by_side, engine=engine), sizes)
        for engine, sizes in (("compiled", ()), ("compiled", (1, 1, 3, 12)), ("numpy", ()))
    ]
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).mean() < 1e-3
    assert 1e-3 < np.abs(found[0] - by_hand(weights, TOKENS)).mean() < 0.1


def test_hooks(network, weights):
    trace = Trace()
    found = network.with_hooks([trace]).forward(TOKENS[:9], State(CONFIG), all_logits=True)
    plain = network.forward(TOKENS[:9], State(CONFIG), all_logits=True)
    np.testing.assert_array_equal(found, plain)
    names = "embedding attn_norm q k v attention mixed attn_out up mlp mlp_out resid_post logits"
    assert list(trace) == names.split() and trace["mlp"].shape == (2, 9, 80)
    before = np.concatenate([trace["embedding"][None], trace["resid_post"][:-1]])
    total = before + (trace["attn_out"] + trace["mlp_out"])
    np.testing.assert_allclose(trace["resid_post"], total, rtol=1e-6)

    edit = Edit("mlp_out", lambda array, place: 0 * array, layers=1)
    zeros = {"layers.1.w_down": Dense(np.zeros((48, 80), np.float32))}
    without = Weights({**weights, **zeros, "layers.1.w_down.bias": np.zeros(48, np.float32)})
    expected = Transformer(CONFIG, without, side_by_side, engine=network._engine_name)
    np.testing.assert_array_equal(
        network.with_hooks([edit]).forward(TOKENS, State(CONFIG)),
        expected.forward(TOKENS, State(CONFIG)),
    )
    with pytest.raises(ValueError, match="no array called 'gate'; it has embedding, attn_norm, q"):
        network.with_hooks([Trace("gate")])


def test_greedy_and_batches(network):
    alone, ahead, states = State(CONFIG), State(CONFIG), [State(CONFIG) for _ in range(3)]
    network.forward(TOKENS[:5], alone), network.forward(TOKENS[:5], ahead)
    read, logits = network.greedy(7, ahead, 12)
    token = 7
    for i in range(12):
        assert read[i] == token
        row = network.forward([token], alone)
        same(network, logits[i], row)
        token = int(row.argmax())
    for i, state in enumerate(states):
        network.forward(TOKENS[: 10 * i + 1], state)
    twins = [state.fork() for state in states]
    pieces = [TOKENS[:1], TOKENS[5:9], TOKENS[9:10]]
    found = network.forward_rows(pieces, states)
    expected = np.stack([network.forward(*each) for each in zip(pieces, twins, strict=True)])
    same(network, found, expected)


def test_it_generates_and_costs(network, tmp_path):
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path / "t.bin"), 300)
    story = Llama(network, tokenizer).generate("ABC", temperature=0, max_new_tokens=9)
    text = "".join(story)
    state, tokens = State(CONFIG), list(story.prompt)
    logits = network.forward(tokens, state)
    for token in story.tokens:
        assert token == int(logits.argmax())
        logits = network.forward([token], state)
    assert text == story.text

    matrices = 2 * (4 * 48 * 48 + 2 * 48 * 80)
    norms, biases = 3 * 2 * 48, 2 * (5 * 48 + 80) + 300
    weights = matrices + 300 * 48 + norms + biases
    keys_and_values = 2 * 2 * 48 * (10 + 2)
    assert bytes_to_generate(network.program, 10, 3) == 4 * (weights + keys_and_values)
    assert operations_to_read(network.program, 0, 1) == 2 * (matrices + 2 * 2 * 48)


def test_its_steps_can_be_printed_and_walked(network):
    lines = str(network.program).splitlines()
    assert len(lines) == 2 + len(network.program.steps)
    assert lines[0].split()[:4] == ["#", "step", "layer", "reads"]
    ops = "embed layernorm linear angles rope attention linear linear gelu linear add add "
    ops += "layernorm linear rope attention linear linear gelu linear add add layernorm logits"
    assert [line.split()[1] for line in lines[1:-1]] == ops.split()
    assert [step.op for step, _ in network.walk(TOKENS[:3])] == ops.split()


@pytest.mark.compiled
def test_a_place_that_is_used_again_is_not_needed_any_more(weights):
    """What is read after its own successor was made: q before its rotation, x beside x + y."""

    def entangled(b, c):
        x = b.embed("embedding")
        for b.layer in range(c.n_layers):
            h = b.layernorm(x, "attn_norm")
            q, k, v = b.linear(h, "wq", "wk", "wv")
            turned, k = b.rope(q, k)
            y = b.linear(b.attention(turned, k, v), "wo")
            z = b.linear(b.gelu(b.linear(b.add(b.add(h, y), q), "w_up")), "w_down")
            gated = b.swiglu(b.add(y, z), b.add(z, y))
            x = b.add(b.add(x, gated), b.swiglu(q, b.add(h, z)))
        b.logits(b.layernorm(b.add(x, x), "final_norm"), "classifier")

    a, b = (
        Transformer(CONFIG, weights, entangled, engine=engine).forward(TOKENS, State(CONFIG), True)
        for engine in ENGINES
    )
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def without_logits(b, c):
    b.embed("embedding")


def too_wide(b, c):
    b.layer = 0
    b.linear(b.embed("embedding"), "w_down")


def unequal(b, c):
    b.layer = 0
    x = b.embed("embedding")
    b.add(x, b.linear(x, "w_up"), name="resid_mid")


def unknown(b, c):
    b.layer = 1
    b.rmsnorm(b.embed("embedding"), "ffn_norm")


def no_matrix(b, c):
    b.logits(b.embed("embedding"), "final_norm")


def half(b, c):
    b.logits(b.embed("embedding"), "classifier")


def in_layer(describe, layer=0):
    """A description of one line, of a block."""

    def described(b, c):
        b.layer = layer
        x = b.embed("embedding")
        describe(b, x, b.linear(x, "wq" if layer < c.n_layers else "classifier"))

    return described


def attend_twice(b, x, y):
    b.attention(b.attention(x, x, x), x, x)


@pytest.mark.parametrize(
    "describe, message",
    (
        (without_logits, "the network does not use|a description must end with logits"),
        (too_wide, r"w_down of layer 0 has shape \(48, 80\), its input is 48 wide"),
        (unequal, "add resid_mid: embedding is 48 wide, up 80"),
        (unknown, "there is no ffn_norm of layer 1"),
        (no_matrix, "final_norm is of type ndarray, expected Dense or Int8"),
        (half, "the network does not use"),
        (in_layer(lambda b, x, y: b.swiglu(x, b.linear(x, "w_up"))), "embedding is 48 wide, up 80"),
        (in_layer(lambda b, x, y: b.rope(x, b.linear(x, "classifier"))), "rope of classifier: 300"),
        (in_layer(lambda b, x, y: b.attention(x, x, b.linear(x, "w_up"))), "up: it is 80 wide"),
        (in_layer(attend_twice), "attention of layer 0: there is one in each of 2"),
        (in_layer(lambda b, x, y: b.attention(x, x, x), 2), "attention of layer 2: there is one"),
        (in_layer(lambda b, x, y: b.add(x, y, name="logits")), "add: only the output of the"),
    ),
)
def test_a_wrong_description_is_refused_in_one_line(weights, describe, message):
    with pytest.raises(ValueError, match=message) as error:
        Transformer(CONFIG, weights, describe)
    assert "\n" not in str(error.value)


def test_biases_and_norms_of_another_shape_are_refused(weights):
    for name, wrong, message in (
        ("layers.1.wq.bias", np.zeros(47, np.float32), r"wq.bias of layer 1 has shape \(47,\)"),
        ("layers.1.wq.bias", np.zeros(48), "wq.bias of layer 1 is float64"),
        ("final_norm.bias", np.zeros((48, 1), np.float32), r"final_norm.bias has shape \(48, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Transformer(CONFIG, Weights({**weights, name: wrong}), side_by_side)
    with pytest.raises(ValueError, match="embedding has shape"):
        Transformer(replace(CONFIG, vocab_size=301), weights, side_by_side)
