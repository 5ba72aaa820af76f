"""/v1/classify, for a decoder with a head for labels and for an encoder with one."""

# Fixtures are imported by name, and the tests take them as arguments:
# ruff: noqa: F401, F811

import numpy as np
import pytest
from serving import CHAT, needs_packages, served, tiny
from test_serve import write_word_pieces

from llama2np import Classifier
from llama2np.cli import main, serve
from llama2np.encoder import Encoder

TEXTS = ["good fine", "bad bad bad", "a"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier as the command finetune writes it."""
    where = tmp_path_factory.mktemp("classifier")
    (where / "train.txt").write_text("good ||| good fine\nbad ||| bad bad\n" * 4)
    words = f"finetune stories-box {where / 'reviews'} --task classify --data {where / 'train.txt'}"
    assert main([*words.split(), "--train", "head", "--steps", "3", "--rate", "0.1"]) == 0
    return where / "reviews"


def test_the_form_of_vllm(served, folder):
    model = Classifier.load(folder, engine="numpy")
    client = served(model)
    found = client.post("/v1/classify", json={"model": "tiny", "input": TEXTS}).json()
    assert found["object"] == "list" and found["model"] == "tiny"
    assert found["id"].startswith("classify-") and found["created"] > 0
    assert [each["index"] for each in found["data"]] == [0, 1, 2]
    for each, expected in zip(found["data"], model.classify(TEXTS), strict=True):
        np.testing.assert_allclose(each["probs"], list(expected.values()), atol=1e-6)
        assert each["label"] == max(expected, key=expected.get) in ("bad", "good")
        assert each["num_classes"] == 2
    count = sum(len(model.tokenizer.encode(text)) for text in TEXTS)
    assert found["usage"] == dict(prompt_tokens=count, total_tokens=count, completion_tokens=0)
    alone = client.post("/classify", json={"input": TEXTS[1]}).json()["data"]
    np.testing.assert_allclose(alone[0]["probs"], found["data"][1]["probs"], atol=1e-6)
    assert client.get("/v1/models").json()["data"][0]["max_model_len"] == 256
    assert "requests_total" in client.get("/metrics").text


def test_a_text_that_is_too_long_is_cut_off(served, folder):
    client = served(Classifier.load(folder, engine="numpy"))
    found = client.post("/v1/classify", json={"input": "good " * 1000}).json()
    assert found["usage"]["prompt_tokens"] == 256 and len(found["data"]) == 1


@pytest.mark.parametrize(
    "body, text",
    (
        ({}, "input must be a text or a list of texts"),
        ({"input": []}, "input must be a text or a list of texts"),
        ({"input": ["a", ""]}, "none of them empty"),
        ({"input": [1]}, "input must be a text or a list of texts"),
        ({"input": ["a"] * 2049}, "input has 2049 texts, expected at most 2048"),
        ({"input": "a", "model": "other"}, "there is no model 'other'"),
    ),
)
def test_wrong_requests(served, folder, body, text):
    client = served(Classifier.load(folder, engine="numpy"))
    response = client.post("/v1/classify", json=body)
    assert response.status_code in (400, 404) and text in response.json()["error"]["message"]


def test_only_what_has_labels_classifies(served, tiny, folder):
    response = served(tiny).post("/v1/classify", json={"input": "a"})
    assert response.status_code == 400
    assert "tiny has no labels" in response.json()["error"]["message"]
    client = served(Classifier.load(folder, engine="numpy"))
    for path, body in (
        ("chat/completions", {"messages": CHAT}),
        ("completions", {"prompt": "a"}),
        ("embeddings", {"input": "a"}),
    ):
        response = client.post(f"/v1/{path}", json=body)
        assert response.status_code == 400
        assert "is a classifier" in response.json()["error"]["message"]


def test_an_encoder_with_labels(served, reference, tmp_path):
    vocabulary = write_word_pieces(tmp_path / "vocab.txt", 320)
    model = Encoder.load(reference / "architectures" / "bert_seqcls", vocabulary)
    (found,) = served(model).post("/v1/classify", json={"input": "ab ba"}).json()["data"]
    (expected,) = model.classify("ab ba")
    assert found["probs"] == pytest.approx(list(expected.values()))
    assert expected[found["label"]] == max(expected.values())


def test_the_command_serves_a_classifier(folder):
    options = serve._parse([str(folder), "--engine", "numpy"], "serve")
    service, _ = serve._made(options)
    assert isinstance(service.model, Classifier) and service.name == "reviews"
    service.close()
