"""What the tests of the server share: a tiny model, servers in this process and on a port."""

import json
import socket
import threading
import time
from contextlib import contextmanager
from importlib.util import find_spec

import pytest
from conftest import TINY, missing, write_tokenizer

from llama2np import Llama
from llama2np.formats.checkpoint import Header

REASON = ""  # why the server cannot be tested

try:
    import uvicorn
    from starlette.testclient import TestClient

    from llama2np.serve.app import make_app
    from llama2np.serve.service import Service
except ImportError as error:
    REASON = f"the server's packages are not installed: {error}"
    uvicorn = TestClient = make_app = Service = None
if find_spec("openai") is None:
    REASON = "openai is not installed"

CHAT = [{"role": "user", "content": "Hi"}]


@pytest.fixture(autouse=True)
def needs_packages():
    if REASON:
        missing(REASON)


@pytest.fixture(scope="session")
def openai():
    """The package, whose import takes half a second."""
    import openai

    return openai


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random model with Llama 2's template."""
    from conftest import random_tensors

    from llama2np.formats.checkpoint import save

    folder, header = tmp_path_factory.mktemp("serve"), Header(1, TINY, True)
    save(folder / "tiny.bin", header, random_tensors(header))
    return Llama.load(folder / "tiny.bin", write_tokenizer(folder / "t.bin"))


@pytest.fixture
def served(tiny):
    """served(**options of Service) -> a client of an app in this process."""
    opened = []

    def serve(model=tiny, **options):
        service = Service(model, "tiny", **options)
        client = TestClient(make_app(service), base_url="http://localhost")
        client.__enter__()
        opened.append(client)
        client.service = service
        return client

    yield serve
    for client in opened:
        client.__exit__(None, None, None)


def alone(model, prompt, **options):
    """What the library makes of a prompt, with OpenAI's defaults."""
    return model.generate(prompt, **{"top_p": 1, "temperature": 1, **options})


def events(response):
    """The objects of a stream, which must end with [DONE]."""
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
    return [json.loads(line[6:]) for line in lines[:-1]]


@contextmanager
def slow_steps(service):
    """Let the worker wait before each step until the block has ended."""
    gate, batch = threading.Event(), service.worker.batch
    step = batch.step

    def slow():
        gate.wait(30)
        return step()

    batch.step = slow
    try:
        yield
    finally:
        gate.set()
        batch.step = step


def wait_until(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def write_word_pieces(path, count):
    """A vocab.txt for an encoder with a vocabulary of `count`."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog"]
    pieces += [f"w{i}" for i in range(count - len(pieces))]
    path.write_text("\n".join(pieces) + "\n")
    return path


@contextmanager
def running(model, **options):
    """A server on a free port: an OpenAI client, with the Service."""
    import openai

    service = Service(model, "tiny", **options)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(make_app(service), log_level="warning", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    wait_until(lambda: server.started)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        client.service, client.url, client.server = service, url, server
        yield client
    server.should_exit = True
    thread.join()
    listener.close()
    service.close()
