"""The endpoints that the page looks through. The page itself: test_page_browser.py."""

import json
import math
import re

import numpy as np
import pytest
from conftest import missing

from llama2np import Edit, Llama, Trace
from llama2np.analysis.lens import best, labels, logit_lens

try:
    from starlette.testclient import TestClient

    from llama2np.serve.app import make_app
    from llama2np.serve.service import Service
except ImportError as error:
    REASON = f"the server's packages are not installed: {error}"
    TestClient = None

PROMPT = "Once upon a time, there was a little girl named"


@pytest.fixture(autouse=True)
def _needs_packages():
    if TestClient is None:
        missing(REASON)


@pytest.fixture(scope="module")
def box():
    return Llama.load("stories-box")


@pytest.fixture
def client(box):
    with TestClient(make_app(Service(box, "box")), base_url="http://localhost") as client:
        yield client


def test_facts(client, box):
    facts = client.get("/look/facts").json()
    assert facts["name"] == "box" and facts["layers"] == box.config.n_layers
    assert facts["formats"] == ["float32"] and facts["bytes"] == box.transformer.weights.nbytes
    assert facts["chats"] is False


def test_the_lens_is_the_library_s(client, box):
    tokens = box.prompt_tokens(PROMPT)
    found = client.post("/look/lens", json={"tokens": tokens}).json()
    assert found["first"] == 0 and found["pieces"] == labels(box.tokenizer, tokens)
    assert len(found["names"]) == len(found["rows"]) == box.config.n_layers + 1
    for row, logits in zip(found["rows"], logit_lens(box, tokens), strict=True):
        top, shares = best(logits)
        assert [cell[0][0] for cell in row] == labels(box.tokenizer, top)
        np.testing.assert_allclose([cell[0][1] for cell in row], shares, atol=1e-4)
    long = client.post("/look/lens", json={"tokens": tokens * 8}).json()
    assert long["first"] == len(tokens) * 8 - 48 and len(long["rows"][0]) == 48
    whole = list(logit_lens(box, tokens * 8))
    assert long["rows"][-1][-1][0][0] == labels(box.tokenizer, best(whole[-1][-1:])[0])[0]


def test_the_attention_of_a_head(client, box):
    tokens = box.prompt_tokens("Tom had a dog")
    ask = {"tokens": tokens, "layer": 2, "head": 3}
    found = client.post("/look/attention", json=ask).json()
    trace = Trace("attention")
    box.with_hooks(trace).forward(tokens, box.new_state())
    for i, row in enumerate(found["weights"]):
        assert len(row) == i + 1
        np.testing.assert_allclose(row, trace["attention", 2][3, i, : i + 1], atol=1e-4)


def test_heads_that_are_off(client, box):
    def ablate(mixed, place):
        mixed[:, 0] = 0

    tokens = box.prompt_tokens(PROMPT)
    ask = {"tokens": tokens, "seed": 5, "max_tokens": 20, "top_p": 0.9}
    plain = client.post("/look/generate", json=ask).json()
    edited = client.post("/look/generate", json=ask | {"off": [[0, 0], [1, 0]]}).json()
    assert plain["text"] == box.generate(PROMPT, seed=5, max_new_tokens=20).read()
    other = box.with_hooks(Edit("mixed", ablate, layers=[0, 1]))
    assert edited["text"] == other.generate(PROMPT, seed=5, max_new_tokens=20).read()
    assert edited["text"] != plain["text"] and len(plain["tokens"]) == 20
    for token in plain["tokens"]:
        shares = [math.exp(each["logprob"]) for each in token["top_logprobs"]]
        assert len(shares) == 10 and sum(shares) <= 1.001 and shares == sorted(shares)[::-1]
    assert "".join(token["piece"] for token in plain["tokens"]) == plain["text"]


@pytest.mark.parametrize(
    "path, body, message",
    [
        ("lens", {}, "tokens must be a list of 1 to 256 tokens"),
        ("lens", {"tokens": [1] * 257}, "tokens must be a list of 1 to 256 tokens"),
        ("lens", {"tokens": [1008]}, "tokens must be 0 to 1007"),
        ("lens", {"tokens": [True]}, "tokens must be 0 to 1007"),
        ("attention", {"tokens": [1], "layer": 5}, "layer must be a whole number from 0 to 4"),
        ("attention", {"tokens": [1], "head": -1}, "head must be a whole number from 0 to 3"),
        ("generate", {"tokens": [1], "off": [1]}, "off must be a list of heads, [layer, head]"),
        ("generate", {"tokens": [1], "off": [[9, 0]]}, "layer must be a whole number from 0 to 4"),
        ("generate", {"tokens": [1], "n": 2, "seed": 1}, "n must be 1"),
    ],
)
def test_bad_requests(client, path, body, message):
    response = client.post(f"/look/{path}", json=body)
    assert response.status_code == 400 and message in response.json()["error"]["message"]


def test_the_tokens_of_a_completion(client, box):
    ask = {"prompt": PROMPT, "seed": 1, "max_tokens": 9, "return_token_ids": True, "logprobs": 1}
    (choice,) = client.post("/v1/completions", json=ask).json()["choices"]
    story = box.generate(PROMPT, seed=1, max_new_tokens=9, top_p=1)
    assert (choice["prompt_token_ids"], choice["token_ids"]) == (story.prompt, story.tokens)
    lines = client.post("/v1/completions", json=ask | {"stream": True}).text.split("\n\n")[:-2]
    parts = [json.loads(line[6:])["choices"][0] for line in lines]
    assert sum((part["token_ids"] for part in parts), []) == story.tokens
    assert parts[0]["prompt_token_ids"] == story.prompt and parts[1]["prompt_token_ids"] is None
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "temperature": 0}
    ask = chat | {"return_token_ids": True}
    found = client.post("/v1/chat/completions", json=ask).json()
    assert len(found["choices"][0]["token_ids"]) == 3 and len(found["prompt_token_ids"]) > 5
    lines = client.post("/v1/chat/completions", json=ask | {"stream": True}).text.split("\n\n")
    parts = [json.loads(line[6:]) for line in lines[:-2]]
    assert parts[0]["prompt_token_ids"] == found["prompt_token_ids"]
    ids = [part["choices"][0].get("token_ids", []) for part in parts]
    assert sum(ids, []) == found["choices"][0]["token_ids"]


def test_the_page_needs_nothing_from_another_host(client):
    response = client.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.search(r"https?:|//[a-z]+\.|@import|src=", response.text)
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy
    script = re.search(r"script-src ([^;]*)", policy)[1]
    assert script.startswith("'sha256-") and "unsafe" not in script
