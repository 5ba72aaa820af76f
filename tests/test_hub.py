"""`llama2np pull ORG/NAME[:FILE]`, against a server on this machine that plays the hub."""

import hashlib
import json
import os
import re
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from urllib.parse import urlsplit

import pytest
from conftest import missing

from llama2np import Llama, export
from llama2np.cli import main
from llama2np.store import hub, names
from llama2np.store.errors import PullError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    """What huggingface_hub asks for: the list of a repository's files, and the files."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urlsplit(self.path).path
        self.server.asked.append(f"{self.command} {path}")
        if match := re.fullmatch(r"/api/models/(\w+/[\w-]+)(/revision/\w+)?", path):
            files = self.server.repositories.get(match[1])
            if match[1] == "org/gated":
                return self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
            if files is None:
                return self.answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            return self.answer(200, json.dumps(description(match[1], files)).encode())
        match = re.fullmatch(r"/(\w+/[\w-]+)/resolve/(\w+)/(.+)", path)
        data = self.server.repositories[match[1]][match[3]]
        etag = hashlib.sha256(data).hexdigest()
        if match[3] in self.server.damaged and self.command == "GET":
            data = bytes(len(data))
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
        if match[3] in self.server.cut and self.command == "GET":
            self.server.cut.discard(match[3])
            return self.answer(200, data, headers, len(data) // 2)
        return self.answer(200, data, headers)

    def answer(self, status, body, headers=None, most=None):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        with suppress(ConnectionError):
            self.wfile.write(body[:most] if self.command == "GET" else b"")
        if most is not None:
            self.close_connection = True

    def log_message(self, *arguments):
        pass


def description(name, files):
    siblings = [
        {
            "rfilename": file,
            "size": len(data),
            "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 1}
            if file.endswith((".gguf", ".safetensors"))
            else None,
        }
        for file, data in files.items()
    ]
    tags = ["license:apache-2.0"]
    return {"id": name, "modelId": name, "sha": COMMIT, "tags": tags, "siblings": siblings}


@pytest.fixture(scope="module")
def hub_on_this_machine(tmp_path_factory):
    """The server. huggingface_hub reads its settings when it is imported: here, once."""
    if find_spec("huggingface_hub") is None:
        missing("huggingface_hub is not installed")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    with pytest.MonkeyPatch.context() as patch:
        for scheme in ("http", "https", "all"):
            for variable in (f"{scheme}_proxy", f"{scheme}_proxy".upper()):
                patch.delenv(variable, raising=False)
        for key in [key for key in os.environ if key.startswith("HF_")]:
            patch.delenv(key)
        patch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        patch.setenv("HF_HUB_DISABLE_XET", "1")
        patch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        forget()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        server.server_close()
        thread.join()
        forget()


@pytest.fixture
def server(hub_on_this_machine, monkeypatch, tmp_path):
    """A hub without repositories, and an empty folder of models."""
    server = hub_on_this_machine
    server.asked, server.damaged, server.cut, server.repositories = [], set(), set(), {}
    monkeypatch.setenv("LLAMA2NP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return server


def forget():
    for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    export("stories-box", path, version="gguf", type="Q8_0")
    return path.read_bytes()


@pytest.mark.compiled
def test_a_folder(server, tmp_path, capsys):
    export("stories-box", tmp_path / "source", version=-1)
    files = {path.name: path.read_bytes() for path in (tmp_path / "source").iterdir()}
    more = {"onnx/model.onnx": b"x", "pytorch_model.bin": b"x", ".gitattributes": b"x"}
    server.repositories["org/name"] = files | more
    assert main(["pull", "org/name"]) == 0
    folder = names.located("org/name")
    kept = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert kept == files.keys() | {"pulled.json"}
    assert "licence apache-2.0" in capsys.readouterr().out
    assert Llama.load("org/name").config.dim == 128
    assert main(["list"]) == 0
    assert str(folder) in capsys.readouterr().out
    asked = len(server.asked)
    assert main(["pull", "org/name"]) == 0
    assert len(server.asked) == asked
    assert main(["rm", "org/name"]) == 0
    assert not folder.exists()


def test_a_quantization(server, gguf, capsys):
    files = {"name-Q8_0.gguf": gguf, "name-Q4_K_M.gguf": b"GGUF4", "mmproj-Q8_0.gguf": b"x"}
    server.repositories["org/name"] = files
    assert main(["pull", "org/name:q8_0"]) == 0
    assert names.located("org/name:q8_0").read_bytes() == gguf
    assert main(["pull", "org/name:name-Q4_K_M.gguf"]) == 0
    assert names.located("org/name:name-Q4_K_M.gguf").read_bytes() == b"GGUF4"
    assert main(["pull", "org/name"]) == 0
    assert names.located("org/name").name == "name-Q4_K_M.gguf"
    assert main(["pull", "org/name:Q2_K"]) == 1
    said = capsys.readouterr().err
    assert "has 0 files for Q2_K: name one, org/name:FILE, of name-Q4_K_M.gguf, name-Q8" in said


def test_damaged_on_the_way(server, gguf, capsys):
    server.repositories["org/name"] = {"a.gguf": gguf}
    server.damaged.add("a.gguf")
    assert main(["pull", "org/name"]) == 1
    assert "a.gguf: expected sha256 " in capsys.readouterr().err
    assert names.find("org/name") is None
    server.damaged.clear()
    assert main(["pull", "org/name"]) == 0
    assert names.located("org/name").read_bytes() == gguf


def test_a_lost_connection(server, gguf):
    server.repositories["org/name"] = {"a.gguf": gguf}
    server.cut.add("a.gguf")
    assert 0 in (main(["pull", "org/name"]), main(["pull", "org/name"]))
    assert names.located("org/name").read_bytes() == gguf


@pytest.mark.parametrize(
    "name, said",
    [
        ("org/gated", "accept its licence on http://127.0.0.1"),
        ("org/absent", "has no such model, or it is private"),
        ("org/empty", "has no GGUF file, nor a config.json with"),
        ("org/hostile", "has no GGUF file, nor a config.json with"),
    ],
)
def test_refused(server, name, said, capsys):
    server.repositories["org/empty"] = {"README.md": b"x"}
    server.repositories["org/hostile"] = {"../../a.gguf": b"x", "/b.gguf": b"x"}
    assert main(["pull", name]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert names.find(name) is None


def test_offline(server, gguf, monkeypatch, capsys, request):
    server.repositories["org/name"] = {"a.gguf": gguf}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    forget()
    request.addfinalizer(forget)
    assert main(["pull", "org/name"]) == 1
    error = capsys.readouterr().err
    assert "not pulled yet, and HF_HUB_OFFLINE is set" in error
    assert server.asked == []


def test_without_the_package(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LLAMA2NP_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["pull", "org/name"]) == 1
    assert capsys.readouterr().err == (
        "llama2np pull: org/name: needs huggingface_hub: "
        f"{sys.executable} -m pip install 'llama2np[hub]'\n"
    )


SPLIT = ["a-Q8_0-00001-of-00002.gguf", "a-Q8_0-00002-of-00002.gguf"]  # one model


@pytest.mark.parametrize(
    "files, file, expected",
    [
        (["a.gguf"], None, ["a.gguf"]),
        (["a-Q4_K_M.gguf", "a-Q8_0.gguf"], None, ["a-Q4_K_M.gguf"]),
        (["a.Q8_0.gguf", "b.Q8_0.gguf"], "Q8_0", None),
        (["a.Q8_0.gguf", "x/a.Q4_0.gguf"], "a.Q4_0.gguf", ["x/a.Q4_0.gguf"]),
        (SPLIT, "Q8_0", SPLIT),
        (["config.json", "model.safetensors", "a.gguf"], "a.gguf", ["a.gguf"]),
        (["config.json", "pytorch_model.bin"], None, ["pytorch_model.bin", "config.json"]),
        (["config.json", "a.gguf"], None, ["a.gguf"]),
        (
            ["config.json", "consolidated.safetensors", "model-00001-of-00001.safetensors"],
            None,  # the same weights twice
            ["model-00001-of-00001.safetensors", "config.json"],
        ),
    ],
)
def test_chosen(files, file, expected):
    if expected is None:
        with pytest.raises(PullError, match="name one, org/name:FILE"):
            hub.chosen("org/name", files, file)
    else:
        assert hub.chosen("org/name", files, file) == expected
