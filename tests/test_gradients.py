"""Gradients: torch's, and numerical differences in float64 for every family."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import examples, pairs
from hypothesis import example, given, settings
from hypothesis import strategies as st
from networks import program, slopes, tiny, weights_of, with_mlm

from llama2np.formats import huggingface, loading
from llama2np.formats.huggingface.families import FAMILIES
from llama2np.formats.json_file import JsonFile
from llama2np.formats.names import unwrapped
from llama2np.formats.source import Stored
from llama2np.learning.activations import erf
from llama2np.learning.batch import Batch, padded
from llama2np.learning.dropout import Dropout
from llama2np.learning.gradients import batch_gradients, batch_loss, loss_and_gradients
from llama2np.learning.loss import cross_entropy
from llama2np.learning.passes import Pass, parameters_of
from llama2np.model.architectures import ARCHITECTURES
from llama2np.model.config import DualChunk, RopeScaling
from llama2np.model.networks import HEADS, encoder_programs, is_encoder
from llama2np.model.transformer import State, Transformer
from llama2np.model.weights import Dense, Int8, Weights

REFERENCES = {
    "llama_mha_tied": "hf_llama_mha_fp32_tied",
    **{name: f"architectures/{name}" for name in ("qwen2_tied", "gpt2", "phi2", "mixtral")},
}


def by_our_names(folder, answers) -> dict:
    """The gradients of a reference, by our names and in our form: read as weights are."""
    found = {n.removeprefix("grad."): a for n, a in answers.items() if n.startswith("grad.")}
    for name in [n for n in found if n.endswith("mlp.experts.gate_up_proj")]:  # transformers 5
        layer = name.removesuffix("mlp.experts.gate_up_proj")
        downs = found.pop(f"{layer}mlp.experts.down_proj")
        for e, (both, down) in enumerate(zip(found.pop(name), downs, strict=True)):
            gate, up = np.split(both, 2)
            parts = {"w1": gate, "w2": down, "w3": up}
            new = f"{layer}block_sparse_moe.experts.{e}"
            found |= {f"{new}.{w}.weight": part for w, part in parts.items()}
        found[f"{layer}block_sparse_moe.gate.weight"] = found.pop(f"{layer}mlp.gate.weight")
    params = JsonFile(folder / "config.json")
    family = FAMILIES[params.get("model_type")]
    config = huggingface.config_of(params, 0)
    stored = {n: Stored.view(a) for n, a in found.items()}
    plain = unwrapped(stored, "", family.prefix)
    tensors = huggingface._by_our_names(plain, family, config, params, tied=True)
    assert not plain  # all have been used
    return {name: t.read(0, t.shape[0]) for name, t in tensors.items()}


@pytest.mark.parametrize("case", pairs(tuple(REFERENCES), (False, True)), ids=str)
def test_gradients_of_torch(reference, case):
    name, recompute = case
    folder = reference / REFERENCES[name]
    answers = dict(np.load(reference / "learning" / f"{name}.npz"))
    model = loading.transformer(folder, "numpy")
    loss, found = loss_and_gradients(model, answers["tokens"], recompute=recompute)
    assert loss == pytest.approx(answers["loss"], abs=2e-6)
    expected = by_our_names(folder, answers)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        # The sums of 128 rows have another order. The gradient of GPT-2's bias of k is 0 (it moves
        # all scores of a row alike), so that both have rounding errors only: hence 1e-7.
        norm = np.linalg.norm(gradient)
        assert np.linalg.norm(found[key] - gradient) <= 2e-5 * norm + 1e-7, key


# What changes the computation beside the family itself
VARIANTS = {
    "plain": ("llama", {"rope_halves": 0}),
    "grouped": ("qwen2", {"n_heads": 6, "n_kv_heads": 2}),
    "tied": ("llama", {"tied": True}),
    "probabilities": ("mixtral", {"expert_probabilities": 1}),
    "one_branch": ("gpt_neox", {"parallel_residual": 1}),
    "scaled": ("llama", {"attention_scale": 0.3}),
    "by_length": ("llama", {"rope_scaling": RopeScaling("dynamic", 2.0, 4)}),
    "chunks": ("qwen2", {"dual_chunk": DualChunk(5, 2, 6, "both")}),
    **{family: (family, {}) for family in FAMILIES},
}


def test_every_architecture_is_among_them():
    of = {FAMILIES[family].architecture for family, _ in VARIANTS.values()}
    assert of == set(ARCHITECTURES)


@pytest.mark.parametrize("variant", VARIANTS)
def test_numerical_differences(variant):
    """For each tensor: the slope along a random direction, by central differences in float64."""
    family, changes = VARIANTS[variant]
    tied = "tied" in changes
    config, tensors = tiny(family, 3, **changes)
    network = program(config, tensors, tied)
    tensors = {n: t for n, t in tensors.items() if n in network.weights}
    random = np.random.default_rng(1)
    tokens = random.integers(0, config.vocab_size, (3, 9))
    lengths = np.array([9, 2, 7])
    weights = random.normal(size=(24, config.dim))  # an encoder has no loss of its own
    batch = Batch.next_tokens(tokens, lengths)
    batch = replace(batch, types=random.integers(0, 2, batch.shape))

    def loss(changed):
        if not is_encoder(config):
            return batch_loss(network, changed, batch).total
        hidden = Pass(network, changed, batch, keep=False).forward()
        return (hidden * weights).sum()

    if is_encoder(config):
        run = Pass(network, tensors, batch)
        run.forward()
        gradients = run.backward(weights)
    else:
        gradients = batch_gradients(network, tensors, batch, 1.0)[1]
    assert gradients.keys() == tensors.keys()
    for name, (found, expected, size) in slopes(loss, tensors, gradients).items():
        # gelu_exact's float32 constants make its slope right to 1e-7
        assert abs(found - expected) < 1e-6 * size + 1e-9, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_forward_pass_is_the_engine_s(variant):
    family, changes = VARIANTS[variant]
    config, tensors = tiny(family, 5, **changes)
    if is_encoder(config):
        pytest.skip("an encoder has no next token")
    network = program(config, tensors, "tied" in changes)
    model = Transformer(config, weights_of(tensors, "tied" in changes), engine="numpy")
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, 12)
    logits = model.forward(tokens, State(config), all_logits=True)[:-1].astype(float)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -np.log(shares[np.arange(11), tokens[1:]]).mean()
    if "by_length" == variant or "chunks" == variant:  # the last token makes the sequence longer
        logits = model.forward(tokens[:-1], State(config), all_logits=True).astype(float)
        shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        expected = -np.log(shares[np.arange(11), tokens[1:]]).mean()
    loss, _ = loss_and_gradients(network, tokens[None])
    assert loss == pytest.approx(expected, abs=1e-5)


@settings(max_examples=examples(30))
@given(st.lists(st.integers(2, 12), min_size=1, max_size=5), st.integers(0, 99))
@example([2, 12, 2], 0)
def test_padding_changes_nothing(lengths, seed):
    """A batch has the mean loss and gradients of its sequences alone, whatever the padding is."""
    config, tensors = tiny("qwen2", seed)
    network = program(config, tensors)
    random = np.random.default_rng(seed)
    rows = [random.integers(0, config.vocab_size, n) for n in lengths]
    tokens, counts = padded(rows)
    tokens[np.arange(tokens.shape[1]) >= counts[:, None]] = random.integers(0, config.vocab_size)
    loss, found = loss_and_gradients(network, tokens, counts, parameters=tensors)
    alone = [loss_and_gradients(network, row[None], parameters=tensors) for row in rows]
    shares = (counts - 1) / (counts - 1).sum()
    assert loss == pytest.approx(sum(s * one.loss for s, one in zip(shares, alone, strict=True)))
    for name, gradient in found.items():
        parts = zip(shares, alone, strict=True)
        expected = sum(share * one.gradients[name] for share, one in parts)
        np.testing.assert_allclose(gradient, expected, rtol=1e-7, atol=1e-12)


def test_only_what_is_trained_has_a_gradient():
    config, tensors = tiny("llama")
    network = program(config, tensors)
    tokens = np.arange(12)[None] % config.vocab_size
    every = loss_and_gradients(network, tokens, parameters=tensors).gradients
    for some in (["layers.1.wq"], ["classifier"], ["layers.0.ffn_norm", "final_norm"]):
        chosen = {name: tensors[name] for name in some}
        rest = {n: t for n, t in tensors.items()}
        found = loss_and_gradients(program(config, rest), tokens, parameters=chosen).gradients
        assert found.keys() == chosen.keys()
        for name in some:  # the frozen rest is float32
            np.testing.assert_allclose(found[name], every[name], rtol=1e-4, atol=1e-6)


def test_frozen_weights_stay_in_their_number_format():
    config, tensors = tiny("llama", dim=32, hidden_dim=32, n_heads=4, n_kv_heads=4)
    random, stored = np.random.default_rng(0), {}
    for name, tensor in tensors.items():
        stored[name] = tensor.astype(np.float32)
        if tensor.ndim == 2:
            q = random.integers(-127, 128, tensor.shape, np.int8)
            stored[name] = Int8(q, np.full((len(tensor), 2), 0.01, np.float32))
    plain = {
        n: Dense(t.rows(np.arange(t.shape[0]))) if isinstance(t, Int8) else t
        for n, t in stored.items()
    }
    tokens, found = np.arange(10)[None], []
    for weights in (stored, plain):
        network = Transformer(config, Weights(weights), engine="numpy").program
        chosen = parameters_of(network, lambda name: name == "layers.0.wv")
        found.append(loss_and_gradients(network, tokens, parameters=chosen))
    assert found[0].loss == found[1].loss
    np.testing.assert_array_equal(*(one.gradients["layers.0.wv"] for one in found))


@pytest.mark.parametrize("family", ("llama", "gemma2", "mixtral", "gpt2"))
def test_recomputed_passes_have_the_same_bits(family):
    config, tensors = tiny(family)
    network = program(config, tensors)
    parameters = {n: t.astype(np.float32) for n, t in tensors.items()}
    batch = Batch.next_tokens(np.arange(24).reshape(2, 12) % config.vocab_size)
    found = [
        batch_gradients(
            network, parameters, batch, recompute=recompute, dropout=Dropout(0.3, 1, (turn,))
        )
        for recompute, turn in ((False, 5), (True, 5), (False, 6))
    ]
    assert found[0][0].total == found[1][0].total != found[2][0].total
    for name in parameters:
        np.testing.assert_array_equal(found[0][1][name], found[1][1][name])


def test_dropout_keeps_the_mean():
    config, tensors = tiny("llama", dim=240, n_heads=3, n_kv_heads=3)
    network = program(config, tensors)
    batch = Batch.next_tokens(np.arange(16)[None])
    step = next(s for s in network.steps if s.outputs[0].name == "attn_out")
    run = Pass(network, {}, batch, keep=False)
    ones = np.ones((15, 240), np.float32)
    (made,) = Dropout(0.25, 0, ()).apply(step, [ones], run)
    assert set(np.unique(made)) == {0, np.float32(1 / 0.75)}
    assert made.mean() == pytest.approx(1, abs=0.05)
    assert Dropout(0, 0, ()).apply(step, [ones], run)[0] is ones


def test_erf():
    import math

    x = np.linspace(-6, 6, 4001)
    exact = np.vectorize(math.erf)(x)
    np.testing.assert_allclose(erf(x.astype(np.float32)), exact, atol=5e-7)
    np.testing.assert_array_equal(erf(x), exact)


@pytest.mark.parametrize("head", HEADS)
def test_heads_of_an_encoder(head):
    """Chains of programs: the derivative by an input of one is that by the output of another."""
    config, tensors = tiny("bert", n_labels=3 * (head == "labels"))
    if config.n_labels:  # then there is no head for masked tokens
        weights = weights_of({n: t for n, t in tensors.items() if not n.startswith("mlm")})
    else:
        weights = with_mlm(weights_of(tensors), config)
    program = encoder_programs(config, weights)[head]
    (source,) = program.steps[0].outputs
    random = np.random.default_rng(0)
    batch = Batch.labels(random.integers(0, 17, (5, 1)), None, random.integers(0, 17, 5))
    arrays = {"input": random.normal(size=(5, config.dim))}
    arrays |= {n: random.normal(size=program.weights[n].shape) for n in program.weights}
    by_y = random.normal(size=(5, program.output.width))

    def forward(arrays, **options):
        made = Pass(program, {n: arrays[n] for n in program.weights}, batch, **options)
        made.put(source.name, arrays["input"])
        y = made.forward()
        if not program.has_logits:
            return made, float((y * by_y).sum()), by_y
        loss = cross_entropy(made, y, 1.0)
        return made, loss.total, loss.by_hidden

    made, _, by_last = forward(arrays)
    gradients = dict(made.backward(by_last))
    gradients["input"] = made.gradient_of(source)
    assert gradients.keys() == arrays.keys()
    for name, (found, expected, size) in slopes(
        lambda changed: forward(changed, keep=False)[1], arrays, gradients
    ).items():
        assert size > 0 and abs(found - expected) < 1e-6 * size, name


@pytest.mark.parametrize(
    "tokens, lengths, words",
    (
        ([[1, 2], [3, 99]], None, "target 99 is not in 0 to 16"),
        ([[-2, 1]], None, "token -2 is not in 0 to 16"),
        ([[1, 2]], [3], "lengths must be 1 to 2, not 3 to 3"),
        ([[1, 2]], [1], "a batch needs a sequence of two tokens"),
        ([[1, 2]], [1, 2], "lengths must be 1 integers"),
        ([1, 2], None, "tokens must be integers"),
        ([[0.5, 2]], None, "tokens must be integers"),
        ([list(range(17)) * 2], None, "sequences of 33 tokens, the context has 16"),
    ),
)
def test_wrong_batches(tokens, lengths, words):
    config, tensors = tiny("llama")
    with pytest.raises(ValueError, match=words):
        loss_and_gradients(program(config, tensors), tokens, lengths)


def test_wrong_models():
    with pytest.raises(ValueError, match="expected a Llama, a Transformer or a Program"):
        loss_and_gradients("llama", [[1, 2]])
    config, tensors = tiny("bert")
    with pytest.raises(ValueError, match="no logits"):
        loss_and_gradients(program(config, tensors), [[1, 2]])
