"""The server's endpoints, in this process."""

# Fixtures are imported by name, and the tests take them as arguments:
# ruff: noqa: F401, F811

import base64
import json
import threading

import numpy as np
import pytest
from conftest import TINY
from serving import (
    CHAT,
    alone,
    events,
    needs_packages,
    served,
    slow_steps,
    tiny,
    wait_until,
    write_word_pieces,
)

from llama2np.encoder import Encoder


def test_models(served):
    client = served()
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "tiny" and model["max_model_len"] == TINY.seq_len
    assert client.get("/v1/models/tiny").json() == model
    assert client.get("/v1/models/other").status_code == 404


def test_a_completion_is_that_of_generate(served, tiny):
    ask = {"model": "tiny", "prompt": "ABC", "max_tokens": 9, "seed": 5, "logprobs": 2}
    found = served().post("/v1/completions", json=ask).json()
    text = alone(tiny, "ABC", max_new_tokens=9, seed=5, logprobs=2)
    (choice,) = found["choices"]
    assert choice["text"] == text.read() and choice["finish_reason"] == "length"
    assert choice["logprobs"]["token_logprobs"] == text.logprobs
    assert [len(top) for top in choice["logprobs"]["top_logprobs"]] == [2] * 9
    assert found["usage"] | {"prompt_tokens_details": 0} == {
        **{"prompt_tokens": len(text.prompt), "completion_tokens": 9},
        **{"total_tokens": len(text.prompt) + 9, "prompt_tokens_details": 0},
    }


@pytest.mark.parametrize(
    "asked, options",
    [
        ({"temperature": 0}, {"temperature": 0}),
        ({"top_p": 0.5, "top_k": 7, "min_p": 0.001}, {"top_p": 0.5, "top_k": 7, "min_p": 0.001}),
        ({"presence_penalty": 1, "frequency_penalty": 0.5}, None),
        ({"repetition_penalty": 1.5}, None),
        ({"logit_bias": {"70": 5, "71": -100}}, {"logit_bias": {70: 5, 71: float("-inf")}}),
        ({"stop": ["e", "q"]}, None),
        ({"max_tokens": 0}, {"max_new_tokens": 0}),
    ],
)
def test_options_of_sampling(served, tiny, asked, options):
    ask = {"prompt": "ABC", "seed": 3, "max_tokens": 12} | asked
    (choice,) = served().post("/v1/completions", json=ask).json()["choices"]
    options = {"max_new_tokens": 12, "seed": 3} | (asked if options is None else options)
    assert choice["text"] == alone(tiny, "ABC", **options).read()


def test_several_prompts_and_choices(served, tiny):
    ask = {"prompt": ["AB", [1, 40, 41]], "n": 2, "seed": 7, "max_tokens": 4, "echo": True}
    choices = served().post("/v1/completions", json=ask).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    for choice, (prompt, seed) in zip(
        choices, [("AB", 7), ("AB", 8), ([1, 40, 41], 7), ([1, 40, 41], 8)], strict=True
    ):
        made = alone(tiny, prompt, seed=seed, max_new_tokens=4)
        assert choice["text"] == tiny.tokenizer.decode(made.prompt, True) + made.read()


def test_a_stream_has_the_same_text(served):
    client = served()
    ask = {"prompt": ["AB", "CD"], "n": 2, "seed": 7, "max_tokens": 9, "logprobs": 1, "stop": "e"}
    whole = client.post("/v1/completions", json=ask).json()
    ask |= {"stream": True, "stream_options": {"include_usage": True}}
    response = client.post("/v1/completions", json=ask)
    assert response.headers["content-type"].startswith("text/event-stream")
    *parts, last = events(response)
    assert last["choices"] == [] and last["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    for choice in whole["choices"]:
        mine = [p["choices"][0] for p in parts if p["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in mine) == choice["text"]
        logprobs = [x for part in mine for x in part["logprobs"]["token_logprobs"]]
        assert logprobs == choice["logprobs"]["token_logprobs"]
        ends = [part["finish_reason"] for part in mine]
        assert ends == [None] * (len(mine) - 1) + [choice["finish_reason"]]


def test_a_chat_is_that_of_the_library(served, tiny):
    messages = [{"role": "developer", "content": [{"type": "text", "text": "Be kind."}]}, *CHAT]
    ask = {"messages": messages, "seed": 4, "max_tokens": 8, "logprobs": True, "top_logprobs": 2}
    client = served()
    found = client.post("/v1/chat/completions", json=ask).json()
    (choice,) = found["choices"]
    answer = "".join(tiny.chat("Be kind.", seed=4, top_p=1, temperature=1).send("Hi"))
    assert choice["message"]["content"] and answer.startswith(
        choice["message"]["content"].rstrip("\ufffd")
    )
    content = choice["logprobs"]["content"]
    assert len(content) == 8 and all(len(each["top_logprobs"]) == 2 for each in content)
    assert all(bytes(each["bytes"]).decode(errors="replace") == each["token"] for each in content)
    parts = events(client.post("/v1/chat/completions", json=ask | {"stream": True}))
    deltas = [part["choices"][0] for part in parts]
    assert deltas[0]["delta"]["role"] == "assistant"
    text = "".join(each["delta"].get("content", "") for each in deltas)
    assert text == choice["message"]["content"] and deltas[-1]["finish_reason"] == "length"
    told = [row for each in deltas if each["logprobs"] for row in each["logprobs"]["content"]]
    assert told == content


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "ok": {"type": "boolean"}},
    "required": ["name", "ok"],
    "additionalProperties": False,
}


def test_json_that_follows_a_schema(served):
    pytest.importorskip("llguidance")
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    ask = {"messages": CHAT, "response_format": form, "n": 3, "seed": 1}
    choices = served().post("/v1/chat/completions", json=ask).json()["choices"]
    for choice in choices:
        assert choice["finish_reason"] == "stop"
        value = json.loads(choice["message"]["content"])
        assert set(value) == {"name", "ok"} and isinstance(value["ok"], bool)
        assert len(value["name"]) <= 5
    ask["response_format"] = {"type": "json_object"}
    ask |= {"max_tokens": 3, "n": 1, "temperature": 0}
    (choice,) = served().post("/v1/chat/completions", json=ask).json()["choices"]
    assert choice["message"]["content"].lstrip().startswith("{")


@pytest.mark.parametrize(
    "path, body, status, message",
    [
        ("completions", b"{", 400, "the body is not JSON"),
        ("completions", b"[" * 100_000, 400, "the body "),
        ("completions", b"[]", 400, "expected a JSON object, found []"),
        ("completions", b'{"temperature": NaN}', 400, "NaN is not JSON"),
        ("completions", b"\xff", 400, "the body is not JSON"),
        ("completions", {"temperature": "hot"}, 400, "temperature must be a number from 0 to 100"),
        ("completions", {"max_tokens": 1.5}, 400, "max_tokens must be a whole number"),
        ("completions", {"n": 0}, 400, "n must be a whole number from 1 to 128, not 0"),
        ("completions", {"best_of": 3}, 400, "best_of must be equal to n"),
        ("completions", {"stop": [1]}, 400, "stop must be a text or a list of texts"),
        ("completions", {"stop": ["a"] * 17}, 400, "stop has 17 texts, expected at most 16"),
        ("completions", {"stream": 1}, 400, "stream must be true or false, not 1"),
        ("completions", {"logit_bias": {"x": 1}}, 400, "logit_bias: expected a token and a numb"),
        ("completions", {"logit_bias": {"999": 1}}, 400, "logit_bias has token 999, the vocabul"),
        ("completions", {"suffix": "x"}, 400, "suffix is not supported by this server"),
        ("completions", {"prompt": [[300]]}, 400, "token 300 is not in the vocabulary"),
        ("completions", {"prompt": []}, 400, "prompt must be a text, tokens, or a list of them"),
        ("completions", {"prompt": ["A"] * 200}, 400, "200 texts in one request, expected at mo"),
        ("completions", {"prompt": "A" * 99}, 400, "the prompt has 101 tokens, the context holds"),
        ("completions", {"model": "other"}, 404, "there is no model 'other', this server has 'ti"),
        ("chat/completions", {}, 400, "messages must be a list of 1 to 10,000 messages, not None"),
        ("chat/completions", {"messages": ["Hi"]}, 400, "expected a JSON object for messages[0]"),
        ("chat/completions", {"messages": [{"role": "x"}]}, 400, "the role of a message must be"),
        (
            "chat/completions",
            {"messages": CHAT * 2},
            400,
            "Llama 2's template needs alternating messages of",
        ),
        ("chat/completions", {"messages": CHAT, "tools": [1]}, 400, "tools is not supported by t"),
        ("chat/completions", {"messages": CHAT, "top_logprobs": 1}, 400, "top_logprobs needs log"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            *(400, "messages[0]: this model reads text only"),
        ),
        (
            "chat/completions",
            {"messages": CHAT, "response_format": {"type": "xml"}},
            *(400, "response_format: type must be text or json_object or json_schema"),
        ),
        (
            "chat/completions",
            {
                "messages": CHAT,
                "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 7}}},
            },
            *(400, "response_format: "),
        ),
        ("completions", b'{"prompt": "\\ud800"}', 400, ""),
        ("completions", b'{"model": "\\ud800"}', 404, "there is no model"),
        ("completions", b'{"seed": 1%s}' % (b"0" * 5000), 400, "the body is not JSON"),
        ("completions", b'{"prompt": [1%s]}' % (b"0" * 300), 400, "prompt must be"),
        ("embeddings", {"input": "A"}, 400, "tiny generates text: embeddings need an encoder"),
        ("nothing", {}, 404, "there is nothing at /v1/nothing"),
    ],
)
def test_bad_requests(served, path, body, status, message):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    client = served()
    headers = {"content-type": "application/json"}
    response = client.post(f"/v1/{path}", content=data, headers=headers)
    error = response.json()["error"]
    assert response.status_code == status and message in error["message"]
    assert client.service.worker.busy == 0


def test_limits(served):
    client = served(max_body=1000, max_sequences=2, max_waiting=1)
    ask = {"prompt": "A" * 2000}
    response = client.post("/v1/completions", json=ask)
    assert response.status_code == 413
    assert response.json()["error"]["message"].startswith("the body has more than 1,000 bytes")

    def chunks():
        yield from [b" " * 600] * 3

    headers = {"content-type": "application/json"}
    response = client.post("/v1/completions", content=chunks(), headers=headers)
    assert response.status_code == 413
    response = client.post("/v1/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert response.status_code == 415
    wrong = client.get("/v1/completions")
    assert wrong.status_code == 405 and wrong.json()["error"]["type"] == "invalid_request_error"
    with slow_steps(client.service):
        first = threading.Thread(
            target=client.post, args=("/v1/completions",), kwargs={"json": {"n": 3}}
        )
        first.start()
        wait_until(lambda: client.service.worker.busy == 3)
        response = client.post("/v1/completions", json={})
        assert response.status_code == 429 and response.headers["retry-after"] == "1"
        assert response.json()["error"]["code"] == "queue_full"
    first.join()
    assert client.post("/v1/completions", json={}).status_code == 200


def test_a_key(served):
    client = served(api_key="secret")
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
        response = client.get("/v1/models", headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert client.post("/v1/completions", json={}, headers=headers).status_code == 401
        assert client.get("/metrics", headers=headers).status_code == 401
    assert client.get("/health").json() == {"status": "ok"}
    headers = {"authorization": "Bearer secret"}
    assert client.get("/v1/models", headers=headers).status_code == 200


def test_other_names_of_this_machine(served):
    """A page of a stranger must not reach the server by a name that points to 127.0.0.1."""
    client = served(hosts=("localhost", "[::1]"))
    assert client.get("/v1/models").status_code == 200
    assert client.get("/v1/models", headers={"host": "[::1]:8080"}).status_code == 200
    response = client.get("/v1/models", headers={"host": "evil.example:8080"})
    assert response.status_code == 403
    assert "access-control-allow-origin" not in client.get("/v1/models").headers


def test_metrics(served):
    client = served()
    client.post("/v1/completions", json={"prompt": "AB", "max_tokens": 4, "temperature": 0})
    client.post("/v1/completions", json={"n": 0})
    client.get("/v1/x")
    text = client.get("/metrics").text
    rows = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert rows['llama2np_requests_total{path="/v1/completions",status="200"}'] == "1"
    assert rows['llama2np_requests_total{path="/v1/completions",status="400"}'] == "1"
    assert rows['llama2np_tokens_total{kind="generated"}'] == "4"
    assert rows["llama2np_first_token_seconds_count"] == "1"
    assert rows['llama2np_text_seconds_bucket{le="+Inf"}'] == "1"
    assert rows["llama2np_texts_running"] == "0"
    for name in {row.partition("{")[0] for row in rows}:
        base = name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum")
        assert f"# TYPE {base} " in text


def test_an_encoder(served, reference, tmp_path):
    folder = reference / "architectures" / "bert_mlm"
    model = Encoder.load(folder, write_word_pieces(tmp_path / "vocab.txt", 320))
    client = served(model)
    ask = {"input": ["a cat", "a dog"]}
    rows = client.post("/v1/embeddings", json=ask).json()["data"]
    np.testing.assert_array_equal(
        np.float32([r["embedding"] for r in rows]), model.embed(ask["input"])
    )
    coded = client.post("/v1/embeddings", json=ask | {"encoding_format": "base64"}).json()["data"]
    row = np.frombuffer(base64.b64decode(coded[1]["embedding"]), "<f4")
    assert row.tolist() == rows[1]["embedding"]
    for bad in (
        {},
        {"input": 5},
        {"input": "a", "dimensions": 5},
        {"input": "a", "encoding_format": "x"},
    ):
        assert client.post("/v1/embeddings", json=bad).status_code == 400
    response = client.post("/v1/completions", json={})
    assert response.status_code == 400 and "is an encoder" in response.json()["error"]["message"]
    assert client.get("/metrics").status_code == 200


def test_a_failure_of_the_network_is_an_answer(served, monkeypatch):
    client = served()

    def broken(*_):
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(client.service.worker.batch, "_read", broken)
        response = client.post("/v1/completions", json={"n": 2})
        assert response.status_code == 500 and "no room" in response.json()["error"]["message"]
        parts = events(client.post("/v1/completions", json={"stream": True}))
        assert "no room" in parts[-1]["error"]["message"]
    assert client.post("/v1/completions", json={}).status_code == 200
    assert client.service.worker.busy == 0
