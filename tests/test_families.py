"""Every folder of the reference: the logits and tokens of transformers, in both engines.

Each folder runs through the same tests; what a network is made of does not matter here.
"""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from conftest import parameters, writable_copy, write_tokenizer

from llama2np import (
    Edit,
    Llama,
    PromptLookup,
    TokenizerError,
    Trace,
    beam_search,
    evaluate,
    export,
)
from llama2np.analysis.lens import logit_lens
from llama2np.bench.arithmetic import bytes_to_generate, operations_to_read
from llama2np.decoding.logits import log_softmax
from llama2np.formats import loading
from llama2np.model.encoder import EncoderNetwork
from llama2np.model.hooks import ENDS
from llama2np.model.listing import bytes_of
from llama2np.model.transformer import State, Transformer
from llama2np.model.weights import Dense, Weights

DECODERS = (
    *("gemma", "gemma2", "gemma3", "gpt2", "gpt2_hubnames", "gptneox_parallel"),
    *("gptneox_sequential", "llama3_rope", "llama_bias", "llama_headdim", "llama_mqa_fp32"),
    *("llama_rope_dynamic", "llama_rope_linear", "llama_rope_yarn", "mistral_nowindow_headdim"),
    *("mistral_swa", "mixtral", "mixtral_swa", "phi2", "phi3_longrope", "phi3_swa", "qwen2_dca"),
    *("qwen2_swa", "qwen2_tied", "qwen2_yarn", "qwen3"),
)
CLASSIFIERS = "gpt2_seqcls", "llama_seqcls"
ENCODERS = "bert_mlm", "bert_pretraining_hubnames", "bert_seqcls"
BATCHES = "gpt2", "llama_bias", "qwen2_tied"
# The rotation of a position depends on the length of the text, so a text in pieces is another one.
BY_LENGTH = "llama_rope_dynamic", "phi3_longrope", "qwen2_dca"
ENGINES = "compiled", "numpy"
CASES = [(name, engine) for name in DECODERS for engine in ENGINES]
# Both engines compute the same programs: often, NumPy has one network of each kind.
NUMPY_OFTEN = (
    *("gemma2", "gemma3", "gpt2", "gptneox_parallel", "llama_bias", "llama_rope_dynamic"),
    *("mistral_swa", "mixtral", "phi2", "phi3_longrope", "qwen2_dca", "qwen3"),
)
OFTEN = [case for case in CASES if case[1] == "compiled" or case[0] in NUMPY_OFTEN]
CLOSE = {"atol": 1e-4, "rtol": 0}  # of logits whose standard deviation is about 1


@pytest.fixture
def expected(reference):
    """expected(name): transformers' answers."""

    def read(name):
        found = dict(np.load(reference / "architectures" / name / "expected.npz"))
        if name == "qwen2_dca":  # transformers ignores dual chunk attention
            other = np.load(reference / "architectures" / name / "expected_dca.npz")
            found["logits"] = other["logits_dca_m1"]
        return found

    return read


@pytest.fixture(scope="module")
def network(reference):
    """network(name, engine): the Transformer of a folder."""

    @cache
    def load(name, engine="compiled"):
        return loading.transformer(reference / "architectures" / name, engine)

    return load


def test_all_folders_are_here(reference):
    folders = {path.name for path in (reference / "architectures").iterdir()}
    assert folders == {*DECODERS, *CLASSIFIERS, *ENCODERS}


@pytest.mark.parametrize("case", parameters(CASES, OFTEN), ids="-".join)
def test_logits(network, expected, case):
    """A text in one pass, token by token, and in pieces of odd lengths."""
    name, engine = case
    model, answers = network(name, engine), expected(name)
    tokens, logits = answers["tokens"], answers["logits"]
    found = model.forward(tokens, State(model.config), all_logits=True)
    np.testing.assert_allclose(found, logits, **CLOSE)
    one_by_one, state = answers.get("logits_incremental", logits), State(model.config)
    if name != "qwen2_dca":
        found = np.stack([model.forward([token], state) for token in tokens])
        np.testing.assert_allclose(found, one_by_one, **CLOSE)
    if name not in BY_LENGTH:
        state, rows = State(model.config), []
        for count in (1, 5, 3, 11, 7, len(tokens)):
            if some := tokens[state.pos : state.pos + count].tolist():
                rows.append(model.forward(some, state, all_logits=True))
        np.testing.assert_allclose(np.concatenate(rows), logits, **CLOSE)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ("llama_rope_dynamic", "phi3_longrope"))
def test_short_texts_are_rotated_as_in_the_training(network, expected, name, engine):
    model, answers = network(name, engine), expected(name)
    first = answers["tokens"][:16]
    found = model.forward(first, State(model.config), all_logits=True)
    np.testing.assert_allclose(found, answers["logits_first16"], **CLOSE)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("scaling, name", (("none", ""), ("keys", "_m1"), ("both", "_m2")))
def test_dual_chunk_attention(network, reference, engine, scaling, name):
    """The three conventions for YaRN's factor; without it, single tokens give the same."""
    answers = np.load(reference / "architectures/qwen2_dca/expected_dca.npz")
    plain = network("qwen2_dca", engine)
    config = replace(plain.config, dual_chunk=replace(plain.config.dual_chunk, scaling=scaling))
    model, tokens = Transformer(config, plain.weights, engine=engine), answers["tokens"]
    found = model.forward(tokens, State(config), all_logits=True)
    np.testing.assert_allclose(found, answers[f"logits_dca{name}"], **CLOSE)
    if scaling == "none":
        state = State(config)
        found = np.stack([model.forward([token], state) for token in tokens])
        np.testing.assert_allclose(found, answers["logits_dca"], **CLOSE)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_with_padding_on_the_left(network, expected, name, engine):
    """Rows of several texts in one pass, without their padding: the same as each text alone."""
    model, answers = network(name, engine), expected(name)
    texts = [
        row[mask == 1]
        for row, mask in zip(answers["batch_tokens"], answers["batch_mask"], strict=True)
    ]
    found = model.forward_rows(texts, [State(model.config) for _ in texts])
    np.testing.assert_allclose(found, answers["batch_logits"][:, -1], **CLOSE)
    for text, logits in zip(texts, answers["batch_logits"], strict=True):
        alone = model.forward(text, State(model.config), all_logits=True)
        np.testing.assert_allclose(alone, logits[-len(text) :], **CLOSE)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_logits_of_labels(network, expected, name, engine):
    model, answers = network(name, engine), expected(name)
    rows = zip(answers["tokens"], answers["mask"], answers["logits"], strict=True)
    for tokens, mask, logits in rows:
        found = model.forward(tokens[mask == 1], State(model.config))
        np.testing.assert_allclose(found, logits, **CLOSE)


def test_a_network_for_labels_does_not_continue_texts(reference):
    model = Llama.load(reference / "architectures" / "gpt2_seqcls")
    for use in (model.generate, model.chat):
        with pytest.raises(
            ValueError, match="trained to classify texts: it has logits of 2 labels"
        ):
            use()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(reference, expected, name, engine):
    loaded, answers = loading.load(reference / "architectures" / name), expected(name)
    model = EncoderNetwork(loaded.config, loaded.weights, engine)
    names = "input_ids", "attention_mask", "token_type_ids"
    ids, mask, types = (answers.pop(name) for name in names)
    defaults = answers.pop("row1_defaults")
    found = model.forward(ids, mask, types)
    for output, values in answers.items():
        np.testing.assert_allclose(found[output], values, **CLOSE)
    alone = model.forward(ids[1:2])
    output = alone.logits if alone.mlm_logits is None else alone.mlm_logits
    np.testing.assert_allclose(output[0], defaults, **CLOSE)


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_of_an_encoder_is_free(reference, name):
    """A text has the same bits alone, in any batch, and wherever padding is."""
    loaded = loading.load(reference / "architectures" / name)
    model, random = EncoderNetwork(loaded.config, loaded.weights), np.random.default_rng(0)
    ids = random.integers(0, loaded.config.vocab_size, (40, 30))
    mask = (np.arange(30) < random.integers(1, 31, (40, 1))).astype(int)
    together = model.forward(ids, mask).last_hidden_state
    for i in (0, 7, 39):
        count = mask[i].sum()
        alone = model.forward(ids[i : i + 1, :count]).last_hidden_state
        np.testing.assert_array_equal(together[i, :count], alone[0])
        assert not together[i, count:].any()


# What every decoder can do


@pytest.mark.parametrize("name", DECODERS)
def test_bits_depend_on_nothing_else(network, expected, name):
    """Not on the cut of a prompt, not on other sequences, not on hooks."""
    model, tokens = network(name), expected(name)["tokens"][:30]
    config = model.config
    state = State(config)
    whole = model.forward(tokens, state, all_logits=True)
    trace = Trace()
    nothing = [
        Edit(place, lambda array, _: array.copy()) for place in ("q", "attention", "mlp_out")
    ]
    hooks = [trace, *(nothing if not config.n_experts else nothing[:2])]
    hooked = model.with_hooks(hooks).forward(tokens, State(config), all_logits=True)
    np.testing.assert_array_equal(hooked, whole)
    if name not in BY_LENGTH:
        one = State(config)
        alone = np.stack([model.forward([token], one) for token in tokens])
        np.testing.assert_array_equal(alone, whole)
        np.testing.assert_array_equal(one.keys, state.keys)
    states = [State(config) for _ in range(3)]
    pieces = [tokens[:9], tokens, tokens[:20]]
    rows = model.forward_rows(pieces, states)
    again = [model.forward(piece, State(config)) for piece in pieces]
    np.testing.assert_array_equal(rows, again)


@pytest.mark.parametrize("name", DECODERS)
def test_hooks_see_the_network(network, expected, name):
    model, tokens = network(name), expected(name)["tokens"][:20]
    c, trace = model.config, Trace()
    logits = model.with_hooks([trace]).forward(tokens, State(c), all_logits=True)
    np.testing.assert_array_equal(trace["logits"], logits)
    assert {"embedding", "q", "k", "v", "attention", "resid_post"} <= set(trace)
    attention = trace["attention"]
    assert attention.shape == (c.n_layers, c.n_heads, 20, 20)
    np.testing.assert_allclose(attention.sum(-1), 1, rtol=1e-5)
    assert not attention[:, :, np.triu_indices(20, 1)[0], np.triu_indices(20, 1)[1]].any()
    for layer, window in enumerate(c.windows):
        if window:
            old = np.tril_indices(20, -window)
            assert not attention[layer][:, old[0], old[1]].any()
    np.testing.assert_allclose(model.unembed(trace["resid_post", c.n_layers - 1]), logits, **CLOSE)
    for point in set(trace) - set(ENDS):
        assert np.isfinite(trace[point]).all()


@pytest.mark.parametrize("name", ("mixtral", "gpt2", "gemma2", "phi2", "mistral_swa"))
def test_both_engines_have_the_same_arrays(network, expected, name):
    tokens = expected(name)["tokens"][:20]
    walks = [dict_of(network(name, engine).walk(tokens)) for engine in ENGINES]
    assert walks[0].keys() == walks[1].keys()
    for key, array in walks[0].items():
        np.testing.assert_allclose(walks[1][key], array, rtol=1e-3, atol=1e-4, err_msg=str(key))


def dict_of(walk):
    return {
        (i, name): np.array(array)
        for i, (_, arrays) in enumerate(walk)
        for name, array in arrays.items()
    }


@pytest.mark.parametrize("name", DECODERS)
def test_states_continue(network, expected, name, tmp_path):
    model, tokens = network(name), expected(name)["tokens"][:24]
    c, state = model.config, State(model.config)
    model.forward(tokens[:20], state)
    twin = state.fork()
    state.save(tmp_path / "state.npz")
    loaded = State.load(tmp_path / "state.npz", c)
    results = [model.forward(tokens[20:], each) for each in (state, twin, loaded)]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("name", DECODERS)
def test_a_run_of_greedy_tokens(network, expected, name):
    """Several tokens in one call are those of single calls."""
    model, prompt = network(name), expected(name)["greedy_prompt"]
    if name in BY_LENGTH:
        assert model.max_greedy_tokens == 1
        return
    a, b = State(model.config), State(model.config)
    token = int(model.forward(prompt, a).argmax())
    model.forward(prompt, b)
    tokens, logits = model.greedy(token, a, 8)
    for one, row in zip(tokens, logits, strict=True):
        np.testing.assert_array_equal(model.forward([one], b), row)


@pytest.mark.parametrize("name", DECODERS)
def test_the_table_of_steps(network, name):
    model = network(name)
    text = str(model.program)
    assert text.count("\n") == len(model.program.steps) + 1
    assert len(model.step_seconds(1)) == len(model.program.steps)
    kinds = {matrix.kind for matrix in model.weights.matrices.values()}
    assert kinds <= {"float32", "bfloat16", "float16"} and len(kinds) == 1


def test_weights_stay_as_they_are_in_the_file(reference, network):
    """Two bytes a value stay two bytes, and a matrix is not copied."""
    for name in DECODERS:
        info = json.loads((reference / "architectures" / name / "info.json").read_text())
        weights = network(name).weights
        matrices = weights.matrices
        assert {m.kind for m in matrices.values()} == {info["dtype"]}
        if name.startswith(("llama", "qwen", "mistral", "mixtral", "phi")):
            assert not any(m.w.flags.owndata for m in matrices.values())


@pytest.mark.parametrize("engine", ENGINES)
def test_only_the_chosen_experts_are_read(network, expected, engine):
    """Nonsense in all others does not matter; and a token needs the bytes of two of eight."""
    model, tokens = network("mixtral", engine), expected("mixtral")["tokens"][:3]
    c, trace = model.config, Trace("router")
    logits = model.with_hooks([trace]).forward(tokens, State(c), all_logits=True)
    tensors = dict(model.weights)
    for layer in range(c.n_layers):
        chosen = np.argsort(-trace["router", layer], axis=1)[:, : c.n_experts_used]
        unused = set(range(c.n_experts)) - set(chosen.ravel().tolist())
        assert unused
        for expert in unused:
            for name in ("w_gate", "w_up", "w_down"):
                full = f"layers.{layer}.experts.{expert}.{name}"
                tensors[full] = Dense(np.full_like(tensors[full].w, np.nan))
    other = Transformer(c, Weights(tensors), engine=engine)
    found = other.forward(tokens, State(c), all_logits=True)
    np.testing.assert_array_equal(found, logits)
    (step, *_) = (step for step in model.program.steps if step.op == "experts")
    names = ("w_gate", "w_up", "w_down")
    one = sum(tensors[f"layers.0.experts.0.{name}"].w.nbytes for name in names)
    assert bytes_of(model.program, step) == 2 * one


@pytest.mark.parametrize("engine", ENGINES)
def test_the_rule_of_switch_transformers(network, engine):
    """One expert, whose output is scaled by its probability among all (Fedus et al. 2021)."""
    plain = network("mixtral", engine)
    config = replace(plain.config, n_experts_used=1, expert_probabilities=1)
    model = Transformer(config, plain.weights, engine=engine)
    for step, arrays in model.walk([5, 6, 7]):
        if step.op == "linear" and "router" in arrays:
            router = arrays["router"].astype(float)
        if step.name.startswith("rmsnorm ffn_norm"):
            h = arrays["ffn_norm"].astype(float)
        if step.op == "experts":
            shares = np.exp(router) / np.exp(router).sum(1, keepdims=True)
            for row, best in enumerate(router.argmax(1)):
                gate, up, down = (
                    plain.weights[f"layers.{step.layer}.experts.{best}.{n}"].w.astype(float)
                    for n in ("w_gate", "w_up", "w_down")
                )
                g = gate @ h[row]
                y = shares[row, best] * (down @ (g / (1 + np.exp(-g)) * (up @ h[row])))
                np.testing.assert_allclose(arrays["mlp_out"][row], y, atol=1e-4)


# With a tokenizer


@pytest.fixture(scope="module")
def llama(reference, tmp_path_factory):
    """llama(name): the folder with a tokenizer of 320 letters and bytes."""
    path = write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "t.bin", 320)
    return cache(lambda name: Llama.load(reference / "architectures" / name, path))


WITH_TOKENS = [case for case in CASES if case[0] != "qwen2_dca"]


@pytest.mark.parametrize("case", parameters(WITH_TOKENS, OFTEN), ids="-".join)
def test_greedy_tokens(reference, expected, case):
    """As a folder is: without a tokenizer here, so nothing ends the text.

    transformers' tokens of qwen2_dca are those without dual chunk attention.
    """
    name, engine = case
    model, answers = Llama.load(reference / "architectures" / name, engine=engine), expected(name)
    story = model.generate(answers["greedy_prompt"], temperature=0, max_new_tokens=24)
    assert story.tokens == answers["greedy_tokens"].tolist()
    assert story.text == "".join(f"<{token}>" for token in story.tokens)
    if name in BATCHES:
        rows = (answers[f"batch_{part}"] for part in ("tokens", "mask", "greedy"))
        for tokens, mask, greedy in zip(*rows, strict=True):
            story = model.generate(tokens[mask == 1], temperature=0, max_new_tokens=24)
            assert story.tokens == greedy.tolist()


@pytest.mark.parametrize("name", DECODERS)
def test_everything_that_generates(llama, name):
    """Sampling, a draft, beams: each draft is accepted or not, the tokens stay the same."""
    model = llama(name)
    prompt = model.tokenizer.encode("ABC ABC ABC AB")
    options = {"temperature": 0, "max_new_tokens": 12}
    plain = model.generate(prompt, **options).tokens
    if name not in BY_LENGTH:  # there, a draft makes the text longer for the tokens before it
        assert model.generate(prompt, draft=PromptLookup(), **options).tokens == plain
        best = beam_search(model, prompt, beams=1, max_new_tokens=12)[0]
        assert list(best.tokens) == plain[: len(best.tokens)]
    twice = [model.generate(prompt, seed=3, max_new_tokens=8).tokens for _ in range(2)]
    assert twice[0] == twice[1]


@pytest.mark.parametrize("name", DECODERS)
def test_everything_that_looks_inside(llama, name):
    """The lens ends with the network's own logits; perplexity is that of the logits; the bench."""
    model = llama(name)
    tokens = model.tokenizer.encode("Hello World")
    own = model.forward(tokens, model.new_state(), all_logits=True)
    lens = list(logit_lens(model, tokens))
    assert len(lens) == model.config.n_layers + 1
    np.testing.assert_allclose(lens[-1], own, **CLOSE)
    rows = log_softmax(own)[np.arange(len(tokens) - 1), tokens[1:]]
    assert evaluate(model, "Hello World").nats == pytest.approx(-rows.sum(), rel=1e-5)
    program = model.transformer.program
    assert bytes_to_generate(program, 8, 1) > bytes_to_generate(program, 0, 1) > 0
    assert operations_to_read(program, 0, 8) > 0


def test_the_suggested_sampling_is_a_hint(reference, tmp_path):
    folder = writable_copy(reference / "architectures" / "qwen2_tied", tmp_path / "folder")
    suggested = {"temperature": 0.7, "top_k": 20, "top_p": 0.8}
    fields = suggested | {"do_sample": True, "min_p": None, "eos_token_id": [2]}
    (folder / "generation_config.json").write_text(json.dumps(fields))
    model = Llama.load(folder)
    assert model.suggested_sampling == suggested == model.with_hooks().suggested_sampling
    story = model.generate([5, 6], seed=1, max_new_tokens=3, **model.suggested_sampling)
    assert len(story.tokens) == 3
    (folder / "generation_config.json").unlink()
    assert Llama.load(folder).suggested_sampling == {}


def test_a_folder_without_a_tokenizer(reference):
    model = Llama.load(reference / "architectures" / "gpt2")
    with pytest.raises(TokenizerError, match="gpt2: has no tokenizer.*give tokens in its place"):
        model.generate("Hello")
    with pytest.raises(ValueError, match="the prompt is empty"):
        model.generate("")
    assert model.tokenizer.decode([1, 319]) == "<1><319>"


@pytest.mark.parametrize("name", (*DECODERS, *CLASSIFIERS, *ENCODERS))
def test_a_folder_goes_round(reference, tmp_path, name):
    """Written again in its own number format, it is the same network."""
    folder = reference / "architectures" / name
    dtype = json.loads((folder / "info.json").read_text())["dtype"]
    export(folder, tmp_path / "again", -1, dtype=dtype)
    a, b = loading.load(folder), loading.load(tmp_path / "again")
    assert a.config == b.config and a.weights.keys() == b.weights.keys()
    for key, tensor in a.weights.items():
        for x, y in zip(arrays_of(tensor), arrays_of(b.weights[key]), strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


def arrays_of(tensor):
    return (tensor,) if isinstance(tensor, np.ndarray) else tensor.arrays
