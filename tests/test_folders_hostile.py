"""Folders of transformers whose config.json is wrong are refused in one line."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from llama2np import Batch, Edit, Llama, beam_search, evaluate
from llama2np.encoder import Encoder
from llama2np.formats import loading
from llama2np.formats.checkpoint import CheckpointError
from llama2np.model.config import MAX_NUMBER, Config, DualChunk
from llama2np.model.encoder import EncoderNetwork
from llama2np.text.numbers import numbers
from tools import hostile_folders


@pytest.fixture
def folder(tmp_path):
    """folder(family, changes of config.json, the number of a valid folder of that family)."""

    def write(family, fields=(), number=0, edit=None):
        found = [each for each in hostile_folders.folders() if each[0]["model_type"] == family]
        described, tensors = found[number]
        if edit:
            edit(tensors)
        (tmp_path / "config.json").write_text(json.dumps(described | dict(fields)))
        save_file(tensors, tmp_path / "model.safetensors")
        return tmp_path

    return write


def longrope(short, long):
    scaling = {"rope_type": "longrope", "short_factor": short, "long_factor": long}
    return {"rope_scaling": scaling | {"original_max_position_embeddings": 8}}


def yarn(**fields):
    return {"rope_scaling": {"type": "yarn", "factor": 2.0, **fields}}


@pytest.mark.parametrize(
    "family, fields, said",
    [
        ("llama", longrope([1.0], [2.0]), "1 short and 1 long factors, expected 2 of each"),
        ("llama", longrope([1.0] * 2, [2.0] * 3), "2 short and 3 long factors"),
        ("llama", longrope([1, 10**400], [1, 1]), "expected a list of numbers above 0"),
        ("llama", yarn() | {"rope_theta": 1}, "yarn needs a rope_theta of more than 1, not 1.0"),
        ("llama", yarn(beta_fast=5e-324), "beta_fast must be 1e-06 or more, not 5e-324"),
        (
            "phi3",
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "partial_rotary_factor": 0.5},
            "needs a rotary_dim of 4 or more, not 2",
        ),
        ("llama", {"max_position_embeddings": 10**29}, "seq_len must be at most"),
        ("mistral", {"sliding_window": 10**29}, f"at most it is {MAX_NUMBER:,}"),
        (
            "qwen2",
            {"dual_chunk_attention_config": {"chunk_size": 10**29, "local_size": 1}},
            f"a number is more than {MAX_NUMBER:,}",
        ),
        ("llama", {"head_dim": 3}, "head_dim = 3 is odd"),
        ("llama", {"tie_word_embeddings": "yes"}, "'yes', expected true or false"),
        ("llama", {"attention_bias": 1}, "attention_bias=1, expected true or false"),
        ("qwen2", {"use_sliding_window": 1}, "use_sliding_window=1, expected true or false"),
        ("gpt_neox", {"use_parallel_residual": 0}, "expected true or false"),
        ("mixtral", {"num_local_experts": 10**9}, "1000000000 experts in each of 2 layers"),
        ("qwen2", {"partial_rotary_factor": 0.5}, "0.5, expected 1: transformers ignores it in a"),
        (
            "gemma3_text",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "sliding_attention: rope_type='linear', expected 'default'",
        ),
    ],
)
def test_refused(folder, family, fields, said):
    path = folder(family, fields)
    with pytest.raises(CheckpointError) as error:
        loading.transformer(path)
    assert said in str(error.value) and str(error.value).startswith(f"{path}/config.json: ")


def test_of_two_scalings_the_old_name_counts(folder):
    """As in transformers 5; it is what a user has added to a file."""
    new = {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}}
    old = {"rope_scaling": {"rope_type": None, "type": "linear", "factor": 2.0}}
    config = loading.load(folder("llama", new | old)).config
    assert config.rope_scaling.factor == 2 and config.rope_theta == 5e5
    assert loading.load(folder("llama", new | old | {"rope_theta": 7e5})).config.rope_theta == 7e5
    for scaling, factor in (({}, 4), (None, 4), ({"rope_type": "default"}, None)):
        found = loading.load(folder("llama", new | {"rope_scaling": scaling})).config.rope_scaling
        assert getattr(found, "factor", None) == factor


def test_null_key_value_heads_are_as_many_as_heads(folder):
    """As in transformers, also in families whose default is another number."""
    for family in ("llama", "qwen2"):
        described = json.loads((folder(family) / "config.json").read_text())
        heads = described["num_attention_heads"]
        width = heads * described.get("head_dim", described["hidden_size"] // heads)

        def widen(tensors, width=width):
            for name in tensors:
                if "k_proj" in name or "v_proj" in name:
                    tensors[name] = np.zeros((width, *tensors[name].shape[1:]), np.float32)

        found = loading.load(folder(family, {"num_key_value_heads": None}, edit=widen)).config
        assert found.n_kv_heads == heads


def test_numbers_of_a_config_fit_into_int64():
    shape = dict(dim=8, hidden_dim=8, n_layers=1, n_heads=2, n_kv_heads=2, vocab_size=8)
    assert Config(**shape, seq_len=MAX_NUMBER).seq_len == MAX_NUMBER
    with pytest.raises(ValueError, match="seq_len must be at most"):
        Config(**shape, seq_len=MAX_NUMBER + 1)
    with pytest.raises(ValueError, match="a window is"):
        Config(**shape, seq_len=4, windows=(MAX_NUMBER + 1,))
    with pytest.raises(ValueError, match="a number is more than"):
        DualChunk(8, 4, original_len=MAX_NUMBER + 1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(  # without JIT, NumPy warns of the kernels' arithmetic, too
    "engine", (pytest.param("compiled", marks=pytest.mark.compiled), "numpy")
)
def test_an_absurd_base_is_reported_by_the_sampler(folder, engine):
    model = Llama.load(folder("llama", {"rope_theta": 1e-300}), engine=engine)
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="logits are not finite"):
        list(model.generate([1, 2], max_new_tokens=2))


def test_a_tensor_by_its_old_and_its_new_name(folder):
    def edit(tensors):
        new = "embeddings.LayerNorm.weight"
        tensors["embeddings.LayerNorm.gamma"] = 2 * tensors[new]

    with pytest.raises(CheckpointError, match=r"is also there by its new name"):
        loading.load(folder("bert", edit=edit))


def test_a_norm_without_dimensions(folder):
    def edit(tensors):
        tensors["norm.weight"] = np.zeros((), np.float32)

    with pytest.raises(CheckpointError, match=r"final_norm has shape \(\), expected \(8,\)"):
        loading.load(folder("gemma", edit=edit))


def test_a_classifier_does_not_continue_texts(folder):
    model = Llama.load(folder("llama", number=1))
    assert model.config.n_labels == 3 and model.forward([1], model.new_state()).shape == (3,)
    for wrong in (
        lambda: model.generate([1]),
        lambda: list(model.generate_batch([[1]])),
        lambda: Batch(model.transformer, model.tokenizer),
        lambda: beam_search(model, [1]),
        lambda: evaluate(model, "<1><2>"),
    ):
        with pytest.raises(
            ValueError, match="trained to classify texts: it has logits of 3 labels"
        ):
            wrong()


def test_a_head_for_labels_needs_the_pooler(folder):
    """As in the folder of a BertForTokenClassification, whose labels are those of tokens."""

    def edit(tensors):
        for name in ("weight", "bias"):
            del tensors[f"pooler.dense.{name}"]

    loaded = loading.load(folder("bert", number=1, edit=edit))
    model = Encoder(EncoderNetwork(loaded.config, loaded.weights), numbers(20, "x"))
    assert model.forward([[1, 2]]).logits is None
    with pytest.raises(ValueError, match="no head that classifies texts"):
        model.classify(["<1>"])


def test_the_calls_of_an_encoder_are_checked(folder):
    loaded = loading.load(folder("bert"))
    network = EncoderNetwork(loaded.config, loaded.weights)
    model = Encoder(network, numbers(20, "x"))
    for call, said in (
        (lambda: network.forward([[1]], heads="mlm"), "heads must be some of pooler, mlm"),
        (lambda: network.mlm(np.zeros(8)), r"hidden must be \(n, 8\), not \(8,\)"),
        (lambda: network.mlm(np.zeros((2, 5))), r"hidden must be \(n, 8\), not \(2, 5\)"),
        (lambda: model.embed(3), "texts must be a str or a list of them, not 3"),
        (lambda: model.embed(["a", 3]), "texts must be a str or a list of them"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_labels_of_the_same_name(folder):
    names = {"id2label": {"0": "same", "1": "same", "2": "other"}}
    assert loading.load(folder("llama", names, 1)).labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_the_longest_text_of_a_sentence_transformer(folder):
    path = folder("bert")
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 1}')
    with pytest.raises(CheckpointError, match=r"max_seq_length=1, expected 2 or more"):
        loading.load(path)


@pytest.mark.parametrize("used", (1, 7, 40))
def test_many_experts(folder, used):
    """All engines choose the same, also where the router's logits are equal or not finite."""
    random = np.random.default_rng(0)

    def edit(tensors):
        for layer in range(2):
            block = f"layers.{layer}.block_sparse_moe"
            tensors[f"{block}.gate.weight"] = np.repeat(
                random.normal(size=(20, 8)).astype(np.float32), 2, axis=0
            )
            for e in range(40):
                for name, shape in (("w1", (12, 8)), ("w2", (8, 12)), ("w3", (12, 8))):
                    values = random.normal(0, 0.3, shape).astype(np.float32)
                    tensors[f"{block}.experts.{e}.{name}.weight"] = values

    path = folder("mixtral", {"num_local_experts": 40, "num_experts_per_tok": used}, edit=edit)
    compiled, simple = (Llama.load(path, engine=engine) for engine in ("compiled", "numpy"))
    tokens = random.integers(0, 20, 13)
    a, b = (model.forward(tokens, model.new_state(), True) for model in (compiled, simple))
    np.testing.assert_allclose(a, b, atol=1e-5)

    def spoil(router, place):
        router[::2] = np.nan

    spoiled = compiled.with_hooks(Edit("router", spoil))
    assert np.isnan(spoiled.forward(tokens, spoiled.new_state())).all()
