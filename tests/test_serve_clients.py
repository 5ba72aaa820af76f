"""The server on a port, and OpenAI's own client."""

# Fixtures are imported by name, and the tests take them as arguments:
# ruff: noqa: F401, F811

import asyncio
import http.client
import json
import socket
import threading

import numpy as np
import pytest
from conftest import missing
from serving import (
    CHAT,
    REASON,
    Service,
    TestClient,
    alone,
    make_app,
    needs_packages,
    openai,
    running,
    slow_steps,
    tiny,
    uvicorn,
    wait_until,
    write_word_pieces,
)

from llama2np import kernels
from llama2np.cli import main
from llama2np.encoder import Encoder


@pytest.fixture(scope="module")
def real(tiny):
    """A server on a free port, with its Service and an OpenAI client."""
    if REASON:
        missing(REASON)
    with running(tiny) as found:
        yield found


def test_openai_s_client(openai, real, tiny):
    assert [model.id for model in real.models.list()] == ["tiny"]
    text = alone(tiny, "AB", max_new_tokens=6, seed=2).read()
    done = real.completions.create(model="tiny", prompt="AB", max_tokens=6, seed=2)
    assert done.choices[0].text == text and done.usage.completion_tokens == 6
    stream = real.completions.create(model="tiny", prompt="AB", max_tokens=6, seed=2, stream=True)
    assert "".join(part.choices[0].text for part in stream) == text
    ask = {"model": "tiny", "messages": CHAT, "seed": 2, "max_tokens": 6, "n": 2, "logprobs": True}
    done = real.chat.completions.create(**ask, top_logprobs=3)
    assert len(done.choices) == 2 and len(done.choices[0].logprobs.content[0].top_logprobs) == 3
    texts = ["", ""]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    for part in real.chat.completions.create(**ask, **options):
        for choice in part.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in done.choices]
    assert part.usage.completion_tokens == 12
    with pytest.raises(openai.BadRequestError, match="temperature must be a number"):
        real.completions.create(model="tiny", prompt="AB", temperature=-1)
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        real.completions.create(model="gpt", prompt="AB")


def test_what_else_clients_send(openai, real, tiny):
    ask = {"model": "tiny", "messages": CHAT, "seed": 2, "temperature": 0}
    known = real.chat.completions.create(**ask, max_completion_tokens=5)
    assert known.usage.completion_tokens == 5 and known.choices[0].finish_reason == "length"
    more = {"user": "me", "store": False, "metadata": {"a": "b"}, "tools": [], "unheard": [1]}
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    same = real.chat.completions.create(
        **ask | {"messages": [{"role": "user", "name": "Tom", "content": parts}]},
        **{"max_tokens": 5, "service_tier": "auto", "extra_body": more},
    )
    assert same.choices[0].message == known.choices[0].message
    first = real.chat.completions.create(**ask | {"temperature": 5, "top_p": 0}, max_tokens=5)
    assert first.choices[0].message == known.choices[0].message  # the best token alone
    none = real.completions.create(model="tiny", prompt="A", max_tokens=0)
    assert none.choices[0].text == "" and none.choices[0].finish_reason == "length"
    for wrong, message in (
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools is not supported"),
        ({"messages": [{"role": "tool", "content": "5", "tool_call_id": "1"}]}, "role of a messa"),
        ({"messages": [*CHAT, {"role": "assistant", "content": "A"}]}, "last message must be the"),
    ):
        with pytest.raises(openai.BadRequestError, match=message):
            real.chat.completions.create(**ask | wrong)
    with pytest.raises(openai.BadRequestError, match="echo with logprobs is not supported"):
        real.completions.create(model="tiny", prompt="A", echo=True, logprobs=1)
    with pytest.raises(openai.APIStatusError) as failed:
        real.completions.create(model="tiny", prompt="A " * 2**22)
    assert failed.value.status_code == 413 and "more than 4,194,304 bytes" in failed.value.message


def test_a_long_prompt_is_not_encoded(openai, real, tiny, monkeypatch):
    """It could take minutes. A prompt is encoded once for all of its choices."""
    monkeypatch.setattr(type(tiny.tokenizer), "encode", lambda *_, **__: 1 / 0)
    for ask in (
        lambda: real.completions.create(model="tiny", prompt="A" * 100_000),
        lambda: real.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "A" * 100_000}]
        ),
    ):
        with pytest.raises(openai.BadRequestError, match="the context holds 96 tokens") as failed:
            ask()
        assert failed.value.code == "context_length_exceeded"
    monkeypatch.undo()
    encode, calls = type(tiny.tokenizer).encode, []

    def counted(self, *rest, **named):
        calls.append(1)
        return encode(self, *rest, **named)

    monkeypatch.setattr(type(tiny.tokenizer), "encode", counted)
    real.completions.create(model="tiny", prompt=["A", "B"], n=5, max_tokens=1)
    assert len(calls) == 2
    with pytest.raises(openai.BadRequestError, match="600 texts in one request, expected at mo"):
        real.completions.create(model="tiny", prompt=["A"] * 60, n=10, max_tokens=1)
    assert len(calls) == 2


def test_other_methods(real):
    port = int(real.url.rpartition(":")[2])
    for method, path, status in (
        ("HEAD", "/v1/models", 200),
        ("HEAD", "/health", 200),
        ("OPTIONS", "/v1/chat/completions", 405),
        ("PUT", "/v1/models", 405),
        ("GET", "/v1/models/", 404),
        ("GET", "/../../etc/passwd", 404),
    ):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request(method, path)
        response = connection.getresponse()
        body = response.read()
        assert response.status == status, (method, path)
        assert not [name for name in response.headers if name.lower().startswith("access-control")]
        assert status == 200 or "error" in json.loads(body)
        connection.close()


def test_vectors_by_openai_s_client(openai, reference, tmp_path):
    """It asks for base64, and decodes it."""
    folder = reference / "architectures" / "bert_mlm"
    model = Encoder.load(folder, write_word_pieces(tmp_path / "vocab.txt", 320))
    with running(model) as client:
        found = client.embeddings.create(model="tiny", input=["a cat", "a dog"])
        rows = np.float32([each.embedding for each in found.data])
        np.testing.assert_array_equal(rows, model.embed(["a cat", "a dog"]))
        assert found.usage.prompt_tokens == 8
        with pytest.raises(openai.BadRequestError, match="input must be a text or a list of text"):
            client.embeddings.create(model="tiny", input=[[1, 2, 3]])


def test_many_clients_at_once(real, tiny):
    def ask(i):
        ask = {"model": "tiny", "prompt": "A" * (i + 1), "seed": i + 1, "max_tokens": 10}
        found[i] = real.completions.create(**ask).choices[0].text

    found = {}
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(12):
        assert found[i] == alone(tiny, "A" * (i + 1), seed=i + 1, max_new_tokens=10).read()


@pytest.mark.parametrize("stream", (True, False))
def test_a_client_that_goes_away(real, stream):
    """Its work stops within a step."""
    worker, gate, steps = real.service.worker, threading.Semaphore(0), []
    step = worker.batch.step

    def counted():
        gate.acquire(timeout=30)
        steps.append(len(worker.batch))
        return step()

    worker.batch.step = counted
    try:
        body = json.dumps({"prompt": "A", "max_tokens": 90, "stream": stream, "temperature": 0})
        connection = socket.create_connection(("127.0.0.1", int(real.url.rpartition(":")[2])))
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall((head + body).encode())
        for _ in range(3):
            gate.release()
        wait_until(lambda: len(steps) == 3)
        connection.close()
        (ticket,) = worker._running.values()
        wait_until(lambda: ticket.cancelled)
        gate.release()
        wait_until(lambda: worker.busy == 0)
        assert len(steps) <= 4 and ticket.completion.stop_reason == "cancelled"
    finally:
        worker.batch.step = step
        gate.release()


def test_a_client_that_goes_away_at_once(tiny):
    """Before the first event is sent."""
    service = Service(tiny, "tiny")
    try:
        with slow_steps(service):
            app, sent = make_app(service), []
            body = json.dumps({"prompt": "A", "max_tokens": 90, "stream": True}).encode()
            messages = [{"type": "http.request", "body": body}, {"type": "http.disconnect"}]

            async def receive():
                return messages.pop(0) if messages else {"type": "http.disconnect"}

            async def send(message):
                sent.append(message)
                await asyncio.sleep(60)  # a connection that takes nothing

            head = [(b"host", b"localhost"), (b"content-type", b"application/json")]
            scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": head}
            scope |= {"query_string": b"", "root_path": "", "app": app}
            asyncio.run(app(scope, receive, send))
            wait_until(lambda: service.worker._running)
            (ticket,) = service.worker._running.values()
            assert ticket.cancelled
        wait_until(lambda: service.worker.busy == 0)
        assert ticket.completion.stop_reason == "cancelled"
    finally:
        service.close()


def test_shutting_down_lets_answers_end(tiny):
    with running(tiny) as client:
        stream = client.completions.create(
            model="tiny", prompt="A", max_tokens=80, stream=True, temperature=0
        )
        text = next(stream).choices[0].text
        client.server.should_exit = True
        text += "".join(part.choices[0].text for part in stream)
    assert text == alone(tiny, "A", max_new_tokens=80, temperature=0).read()
    assert client.service.worker.busy == 0 and not client.service.worker._thread.is_alive()


def test_the_command_refuses_to_be_open_to_all(capsys, monkeypatch):
    monkeypatch.delenv("LLAMA2NP_API_KEY", raising=False)
    assert main(["serve", "stories-box", "--host", "0.0.0.0"]) == 1
    assert "lets other machines in: set an API key" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", "stories-box", "--port", port]) == 1
    assert (
        f"127.0.0.1 port {port}: Address already in use: --port 0 takes" in capsys.readouterr().err
    )


def test_the_command_serves(capsys, monkeypatch):
    def run(server, sockets):
        sockets[0].listen()
        ran.append(server.config.app)

    ran = []
    monkeypatch.setattr(uvicorn.Server, "run", run)
    assert main(["serve", "stories-box", "--port", "0", "--name", "box"]) == 0
    assert "box: http://127.0.0.1:" in capsys.readouterr().err
    with TestClient(ran[0], base_url="http://127.0.0.1") as client:
        assert client.get("/v1/models").json()["data"][0]["id"] == "box"


def test_the_number_of_threads(monkeypatch, capsys):
    """It is a setting of the thread that calls the kernels: the worker's, not the main one."""
    ran, found = [], []
    monkeypatch.setattr(uvicorn.Server, "run", lambda server, sockets: use(server.config.app))
    set_threads = kernels.set_threads

    def counted(count):
        found.append((threading.current_thread().name, count))
        set_threads(count)

    def use(app):
        with TestClient(app, base_url="http://127.0.0.1") as client:
            ran.append(client.post("/v1/completions", json={"max_tokens": 1}).status_code)
            ran.append(client.post("/look/lens", json={"tokens": [1]}).status_code)

    monkeypatch.setattr(kernels, "set_threads", counted)
    words = ["serve", "stories-box", "--port", "0", "--threads", "1"]
    own = threading.Thread(target=main, args=(words,))  # the number of the tests' thread stays
    own.start()
    own.join()
    capsys.readouterr()
    names = [name for name, _ in found]
    assert ran == [200, 200] and {count for _, count in found} == {1}
    assert "llama2np worker" in names and any("aside" in name for name in names)
