"""`llama2np pull` of single files, against a server on this machine, with files of its own."""

import hashlib
import io
import os
import random
import re
import socket
import sys
import threading
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from math import prod
from urllib.request import install_opener

import pytest

from llama2np.cli.pull import main as pull
from llama2np.formats.checkpoint import Header
from llama2np.model.config import Config
from llama2np.store import download, pulling
from llama2np.store.catalogue import FILES, Item

NAME = "a.bin"
DATA = random.Random(0).randbytes(600_000)  # more than two chunks
SIZE = len(DATA)
HELD = 200_000  # what a .part has in the tests of resuming
OLD = DATA[:HELD]
SHA256 = hashlib.sha256(DATA).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves DATA under every path but those below, and keeps the Range headers it saw."""

    def do_GET(self):
        self.server.ranges.append(self.headers["Range"])
        mode = self.path.split("/")[1]
        if mode == "gibberish":
            return self.wfile.write(b"good morning\r\n")
        if mode == "moved":
            return self.answer(302, {"Location": "/file"})
        if mode == "missing":
            return self.answer(404, {}, b"nothing here")
        if mode == "other":  # say, the page of a proxy
            return self.answer(200, {}, b"please log in")
        if mode == "endless":
            return self.answer(200, {"Content-Length": None}, DATA)
        start = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        start = int(start[1]) if start and mode != "rangeless" else None
        if mode == "past" and start:
            return self.answer(416, {"Content-Range": f"bytes */{SIZE}"})
        headers, body = {"Content-Length": str(SIZE - (start or 0))}, DATA[start:]
        if start is not None:
            total = SIZE + 1 if mode == "changed" else SIZE
            headers["Content-Range"] = f"bytes {start}-{SIZE - 1}/{total}"
        if mode == "long":
            headers["Content-Length"], body = None, body + b"and more"
        if mode in ("cut", "stall"):
            body = body[: len(body) // 2]
        self.answer(200 if start is None else 206, headers, body)
        if mode == "stall":
            self.server.stalling.wait(5)

    def do_CONNECT(self):  # what an https proxy is asked
        self.answer(403, {})

    def answer(self, status, headers, body=b""):
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            if value is not None:
                self.send_header(key, value)
        self.end_headers()
        with suppress(ConnectionError):  # who asked may have heard enough
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    for scheme in ("http", "https", "all"):
        for variable in (f"{scheme}_proxy", f"{scheme}_proxy".upper()):
            monkeypatch.delenv(variable, raising=False)
    install_opener(None)  # the one that urllib keeps knows the proxies of its first use
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.ranges, server.stalling = [], threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.stalling.set()
        server.shutdown()
        thread.join()
    install_opener(None)


class Folder:
    """A folder to download into: what it holds, and what the command said last."""

    def __init__(self, path, capsys, monkeypatch):
        self.file, self.part = path / NAME, path / f"{NAME}.part"
        self._path, self._capsys, self._monkeypatch = path, capsys, monkeypatch

    def get(self, url):
        files = {NAME: Item(NAME, SIZE, SHA256, url=url)}
        self._monkeypatch.setattr(pulling, "FILES", files)
        status = pull([NAME, "--folder", str(self._path)], prog="pull")
        self.out, self.err = self._capsys.readouterr()
        self.err = self.err.removeprefix("pull: ")
        return status

    def has(self, **expected):
        """Whether it holds these bytes under `file` and `part`, and nothing else."""
        found = {path.suffix: path.read_bytes() for path in self._path.iterdir()}
        return found == {{"file": ".bin", "part": ".part"}[k]: v for k, v in expected.items()}


@pytest.fixture
def folder(tmp_path, capsys, monkeypatch):
    return Folder(tmp_path, capsys, monkeypatch)


def test_sizes_are_those_of_the_format():
    shapes = {
        "stories15M.bin": Config(288, 768, 6, 6, 6, 32000, 256),
        "stories42M.bin": Config(512, 1376, 8, 8, 8, 32000, 1024),
        "stories110M.bin": Config(768, 2048, 12, 12, 12, 32000, 1024),
    }
    for name, config in shapes.items():
        header = Header(version=0, config=config, tied=True)
        size = len(header.to_bytes()) + sum(4 * prod(shape) for _, shape in header.tensors())
        assert FILES[name].size == size, name
    assert FILES.keys() == shapes.keys() | {"tokenizer.bin"}


def test_size_of_the_tokenizer(reference):
    tokenizer = reference / "llama32k/tokenizer.bin"
    assert FILES["tokenizer.bin"].sha256 == download.digest_of(tokenizer)
    assert FILES["tokenizer.bin"].size == tokenizer.stat().st_size


def test_sources_end_in_the_name():
    for name, item in FILES.items():
        assert item.url.startswith("https://") and item.url.endswith(f"/{name}")
        assert re.fullmatch("[0-9a-f]{64}", item.sha256)


def test_downloads(server, folder):
    assert folder.get(f"{server.url}/file") == 0
    assert folder.has(file=DATA)
    assert folder.out == f"a.bin: 600,000 bytes from {server.url}/file\n"
    assert folder.err == ""
    assert server.ranges == [None]


def test_a_terminal_gets_a_bar_instead(server, folder, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    assert folder.get(f"{server.url}/file") == 0
    assert folder.has(file=DATA)
    assert folder.out == ""
    assert re.search(r"a\.bin: 100%.*600k/600k", screen.getvalue())


@pytest.mark.parametrize("mode", ["file", "moved", "long"])
def test_resumes(server, folder, mode):
    folder.part.write_bytes(OLD)
    assert folder.get(f"{server.url}/{mode}") == 0
    assert folder.has(file=DATA)
    assert folder.out.endswith(", resumed at 200,000\n")
    assert set(server.ranges) == {"bytes=200000-"}  # behind the redirect too


@pytest.mark.parametrize("mode", ["rangeless", "past"])
def test_starts_over_where_the_server_cannot_resume(server, folder, mode):
    folder.part.write_bytes(b"?" * HELD)
    assert folder.get(f"{server.url}/{mode}") == 0
    assert folder.has(file=DATA)
    assert "resumed" not in folder.out
    assert server.ranges == ["bytes=200000-"] + [None] * (mode == "past")


def test_starts_over_when_the_part_is_too_large(server, folder):
    folder.part.write_bytes(b"?" * (SIZE + 1))
    assert folder.get(f"{server.url}/file") == 0
    assert folder.has(file=DATA)
    assert server.ranges == [None]


def test_a_whole_part_is_only_renamed(server, folder):
    folder.part.write_bytes(DATA)
    assert folder.get(f"{server.url}/file") == 0
    assert folder.has(file=DATA)
    assert server.ranges == []


def test_a_file_that_is_here_is_left_alone(server, folder):
    folder.file.write_bytes(DATA)
    assert folder.get(f"{server.url}/file") == 0
    assert folder.has(file=DATA)
    assert folder.out == "a.bin: already here, 600,000 bytes\n"
    assert server.ranges == []


def test_a_file_of_another_size_is_left_alone(server, folder):
    folder.file.write_bytes(b"mine")
    assert folder.get(f"{server.url}/file") == 1
    assert folder.has(file=b"mine")
    assert folder.err == (
        "a.bin: needs 600,000 bytes, a.bin has 4: "
        "move or remove that, then run the same command again\n"
    )
    assert server.ranges == []


@pytest.mark.parametrize("mode, reason", [("cut", "closed early"), ("stall", "timed out")])
def test_a_lost_connection_keeps_what_came(server, folder, monkeypatch, mode, reason):
    monkeypatch.setattr(download, "_TIMEOUT", 0.5)
    assert folder.get(f"{server.url}/{mode}") == 1
    assert folder.has(part=DATA[:300_000])
    assert folder.err == (
        f"a.bin: lost 127.0.0.1 ({reason}) at 300,000 of 600,000 bytes: "
        "run the same command again to resume\n"
    )
    server.stalling.set()
    assert folder.get(f"{server.url}/file") == 0
    assert folder.has(file=DATA)
    assert server.ranges == [None, "bytes=300000-"]


def test_ctrl_c_keeps_what_came(server, folder, monkeypatch):
    class Bar(download.tqdm):
        def update(self, n=1):
            raise KeyboardInterrupt

    monkeypatch.setattr(download, "tqdm", Bar)
    assert folder.get(f"{server.url}/file") == 130
    held = folder.part.stat().st_size
    assert 0 < held < SIZE
    assert folder.has(part=DATA[:held])
    assert folder.err == (
        f"a.bin: stopped at {held:,} of 600,000 bytes: run the same command again to resume\n"
    )


def test_ctrl_c_before_the_first_byte(folder, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "urlopen", interrupted)
    assert folder.get("http://127.0.0.1/file") == 130
    assert folder.has()
    assert folder.err.startswith("a.bin: stopped at 0 of 600,000 bytes: ")


@pytest.mark.parametrize(
    "mode, said",
    [
        ("missing", "127.0.0.1 answers 404 Not Found: try again later. "),
        ("other", "needs Content-Length 600000, 127.0.0.1 says 13: another file? "),
        ("endless", "needs Content-Length 600000, 127.0.0.1 says nothing: another file? "),
        (
            "changed",
            "needs Content-Range bytes 200000-599999/600000, "
            "127.0.0.1 says bytes 200000-599999/600001: another file? ",
        ),
    ],
)
def test_another_answer_leaves_the_part_alone(server, folder, mode, said):
    folder.part.write_bytes(OLD)
    assert folder.get(f"{server.url}/{mode}") == 1
    assert folder.has(part=OLD)
    assert folder.err == f"a.bin: {said}{elsewhere(f'{server.url}/{mode}')}"
    assert folder.out == ""


def test_two_downloads_at_once(server, folder, monkeypatch):
    class Bar(download.tqdm):
        def __exit__(self, *error):
            with open(folder.part, "ab") as other:
                other.write(b"more")

    folder.part.write_bytes(OLD)
    monkeypatch.setattr(download, "tqdm", Bar)
    assert folder.get(f"{server.url}/file") == 1
    assert not folder.file.exists()
    assert folder.err == (
        "a.bin: needs 600,000 bytes, a.bin.part has 600,004: "
        "move or remove that, then run the same command again\n"
    )


@pytest.mark.skipif(os.name == "nt", reason="flock")
def test_a_second_download_while_one_runs(server, folder):
    import fcntl

    folder.part.write_bytes(OLD)
    with open(folder.part, "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert folder.get(f"{server.url}/file") == 1
    assert folder.has(part=OLD)
    assert folder.err == (
        "a.bin: another process writes a.bin.part: wait for it, then run this again\n"
    )
    assert folder.get(f"{server.url}/file") == 0 and folder.has(file=DATA)


def test_a_part_that_grew_while_the_server_answered(server, folder, monkeypatch):
    """Where there are no locks."""
    folder.part.write_bytes(OLD)

    def answers(url, start, real=download._open):
        folder.part.write_bytes(OLD + b"more")
        return real(url, start)

    monkeypatch.setattr(download, "fcntl", None)
    monkeypatch.setattr(download, "_open", answers)
    assert folder.get(f"{server.url}/file") == 1
    assert folder.has(part=OLD + b"more")


@pytest.mark.skipif(os.name == "nt", reason="links and pipes")
@pytest.mark.parametrize("how", ("link", "pipe"))
def test_a_part_that_is_no_file(server, folder, tmp_path, how):
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    folder.part.symlink_to(target) if how == "link" else os.mkfifo(folder.part)
    assert folder.get(f"{server.url}/file") == 1
    assert target.read_bytes() == b"precious"
    assert folder.err == "a.bin: a.bin.part is not a regular file: move or remove that\n"


def test_no_http(server, folder):
    unreachable(folder, f"{server.url}/gibberish", "127.0.0.1", "good morning")


def test_nobody_listens(server, folder):
    with closing(socket.create_server(("127.0.0.1", 0))) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/file"
    unreachable(folder, url, "127.0.0.1", "Connection refused")


def test_no_name_service(server, folder, monkeypatch):
    def fails(*arguments, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    unreachable(folder, "https://a.invalid/file", "a.invalid", "Name or service not known")


def test_a_proxy_refuses(server, folder, monkeypatch):
    monkeypatch.setenv("https_proxy", server.url)
    reason = "Tunnel connection failed: 403 Forbidden"
    unreachable(folder, "https://a.invalid/file", "a.invalid", reason)


def test_a_proxy_is_misspelt(server, folder, monkeypatch):
    monkeypatch.setenv("https_proxy", "http:/x")
    reason = "proxy URL with no authority: 'http:/x'"
    unreachable(folder, "https://a.invalid/file", "a.invalid", reason)


def test_a_folder_that_cannot_be_written(server, folder):
    folder.part.mkdir()
    assert folder.get(f"{server.url}/file") == 1
    assert folder.err == "a.bin: cannot be written here (Is a directory)\n"


@pytest.mark.parametrize("name", ("file", "part"))
def test_a_file_with_other_bytes_is_left_alone(server, folder, name):
    getattr(folder, name).write_bytes(b"x" * SIZE)
    assert folder.get(f"{server.url}/file") == 1
    assert folder.has(**{name: b"x" * SIZE})
    other = hashlib.sha256(b"x" * SIZE).hexdigest()
    assert folder.err == (
        f"a.bin: needs sha256 {SHA256}, {getattr(folder, name)} has {other}: "
        "move or remove that, then run the same command again\n"
    )


def test_a_name_it_does_not_know(tmp_path, capsys):
    assert pull(["stories1M.bin", "--folder", str(tmp_path)], prog="pull") == 1
    assert capsys.readouterr().err == (
        "pull: expected one of smollm2, stories15M, stories42M, stories110M, stories15M.bin, "
        "tokenizer.bin, stories42M.bin, stories110M.bin; found stories1M.bin; "
        "did you mean stories15M.bin?\n"
    )


def test_a_model_comes_with_its_tokenizer(server, tmp_path, monkeypatch, capsys):
    known = pulling.CATALOGUE["stories15M"]
    items = [Item(item.name, SIZE, SHA256, url=f"{server.url}/file") for item in known.items]
    monkeypatch.setitem(pulling.CATALOGUE, "stories15M", type(known)(tuple(items), "MIT"))
    assert pull(["stories15M.bin", "--folder", str(tmp_path)], prog="pull") == 0
    names = {"stories15M.bin", "tokenizer.bin"}
    assert {path.name for path in tmp_path.iterdir()} == names


def unreachable(folder, url, host, reason):
    assert folder.get(url) == 1
    assert folder.has()
    assert folder.err == (
        f"a.bin: cannot reach {host} ({reason}): is there a network? {elsewhere(url)}"
    )


def elsewhere(url):
    return f"The file can also be fetched by other means from {url} and put here\n"
