"""Numbers in a file, and what is no regular file, never cost the disk, the memory or the time."""

import io
import json
import os
import signal
import struct
import sys
import tracemalloc
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import TINY, write_tokenizer
from llama2np.config import MAX_LAYERS, Config
from llama2np.transformer import State

from llama2np import files
from llama2np.cli import flags, main
from llama2np.cli.screen import Screen
from llama2np.files import open_regular, read_at_most
from llama2np.formats import (
    checkpoint,
    huggingface,
    inspection,
    json_file,
    llama2c,
    meta,
    safetensors,
)
from llama2np.formats.checkpoint import CheckpointError, Header
from llama2np.formats.rope_tables import rope_tables
from llama2np.formats.source import Source
from llama2np.formats.torch_zip import TorchFile
from llama2np.formats.write import _check_tables, write_bin
from llama2np.text import llama2c_bpe, models, sentencepiece_model
from llama2np.text.tokenizer import Tokenizer, TokenizerError
from tools.hostile import SMALL, valid, write_case
from tools.odd import _field, put_special


@contextmanager
def at_most(memory):
    """Fails where Python allocates more bytes than that, beside those it has."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= memory


@pytest.fixture
def no_waiting():
    """Ends what waits for ever."""

    def waits(*_):
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, waits)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# Regular files only

KINDS = {
    "FIFO": "is a FIFO (named pipe), expected a regular file",
    "socket": "is a socket, expected a regular file",
    "/dev/zero": "is a character device, expected a regular file",
    "folder": "Is a directory, expected a file",
}
READERS = {
    "checkpoint": checkpoint.load,
    "header": checkpoint.read_header,
    "tokenizer": Tokenizer.load,
    "state": lambda path: State.load(path, SMALL),
    "torch": TorchFile,
    "safetensors": safetensors.read,
    "json": json_file.JsonFile,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file(tmp_path, no_waiting, kind, reader):
    put_special(tmp_path / "x", kind)
    if (kind, reader) == ("folder", "tokenizer"):  # it may be one with a tokenizer in it
        with pytest.raises(TokenizerError, match="a directory without a tokenizer"):
            Tokenizer.load(tmp_path / "x")
        return
    with pytest.raises(OSError) as caught:
        READERS[reader](tmp_path / "x")
    assert caught.value.filename == str(tmp_path / "x") and caught.value.strerror == KINDS[kind]


@pytest.mark.parametrize("name", ("config.json", "model.safetensors", "part0.safetensors"))
def test_in_a_folder(tmp_path, capsys, no_waiting, name):
    case = valid("hf")[name.startswith("part")]
    write_case(dict(case) | {name: "FIFO"}, tmp_path)
    assert main(["export", str(tmp_path / "x.bin"), "--hf", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said == f"llama2np export: {tmp_path / name}: {KINDS['FIFO']}\n"


@pytest.mark.parametrize(
    "argv",
    (
        ["run", "{x}"],
        ["run", "-z", "{x}"],
        ["inspect", "{x}"],
        ["perplexity", "--file", "{x}"],
        ["perplexity", "--against", "{x}", "--file", __file__],
        ["export", "y.bin", "--checkpoint", "{x}"],
        ["export", "y.bin", "--bin", "{x}"],
        ["bench", "{x}"],
        ["lens", "-i", "A", "{x}"],
    ),
    ids=lambda argv: " ".join(argv[:-1]),
)
@pytest.mark.parametrize("kind", ("FIFO", "/dev/zero"))
def test_from_the_command_line(tmp_path, monkeypatch, capfd, no_waiting, argv, kind):
    monkeypatch.chdir(tmp_path)
    put_special(tmp_path / "x", kind)
    assert main([word.format(x=tmp_path / "x") for word in argv]) == 1
    said = capfd.readouterr().err
    assert said.splitlines()[-1].endswith(f"{tmp_path / 'x'}: {KINDS[kind]}")
    assert os.listdir(tmp_path) == ["x"]


def test_a_fifo_that_came_after_the_look(tmp_path, monkeypatch, no_waiting):
    """Between stat and open a file can become another one."""
    put_special(tmp_path / "x", "FIFO")
    write_tokenizer(tmp_path / "y")
    regular = os.stat(tmp_path / "y")
    monkeypatch.setattr(files.os, "stat", lambda path: regular)
    with pytest.raises(OSError, match=r"is a FIFO \(named pipe\), expected a regular file"):
        open_regular(tmp_path / "x")
    with open_regular(tmp_path / "y") as file:
        assert read_at_most(file, 10**6) == (tmp_path / "y").read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="waits for a pipe")
@pytest.mark.parametrize("size", (-1, 64))
def test_a_regular_file_that_would_wait(size):
    """A read of /proc/kmsg waits. Here an empty pipe takes its place."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with (
        io.BufferedReader(files._Ready("kmsg", opener=lambda *_: reading)) as file,
        pytest.raises(OSError, match="has no end, expected a regular file: 'kmsg'"),
    ):
        file.read(size)
    os.close(writing)


@pytest.mark.skipif(sys.platform != "linux", reason="has no /proc")
def test_files_that_claim_to_be_empty():
    for limit, expected in ((10, type(None)), (10**6, bytes)):
        with open_regular("/proc/self/status") as file:
            assert type(read_at_most(file, limit)) is expected
    with pytest.raises(CheckpointError, match="not a llama2.c checkpoint"):
        checkpoint.load("/proc/self/status")


# Layers


@pytest.mark.parametrize("version", (0, 1, 2))
def test_a_million_layers(tmp_path, version):
    """The file is as large as it has to be, and takes no place on the disk."""
    numbers = (4, 4, 10**6, 1, 1, 4, 8)
    head = struct.pack("<7i", *numbers)
    if version:
        head = struct.pack("<Ii7iBi", checkpoint.MAGIC, version, *numbers, 1, 4)
    (tmp_path / "x.bin").write_bytes(head)
    with open(tmp_path / "x.bin", "r+b") as file:
        file.truncate(4 * (10**6 * 120 + 100))
    with at_most(2**18):
        for read in (checkpoint.load, checkpoint.read_header, llama2c.read_bin):
            with pytest.raises(CheckpointError, match="n_layers must be at most 1,024, not 1,000,"):
                read(tmp_path / "x.bin")


def test_the_most_layers(tmp_path):
    header = Header(1, Config(2, 1, MAX_LAYERS, 1, 1, 3, 4), True)
    (tmp_path / "x.bin").write_bytes(header.to_bytes().ljust(header.file_size, b"\0"))
    with at_most(2**23 + 100 * header.file_size):
        assert len(checkpoint.load(tmp_path / "x.bin")[1].layers) == 1024


@pytest.mark.parametrize("kind, read", (("hf", huggingface.read), ("meta", meta.read)))
def test_layers_that_a_config_claims(tmp_path, kind, read):
    case = dict(valid(kind)[0])
    name, field = (name := min(case)), {"config.json": "num_hidden_layers"}.get(name, "n_layers")
    name = "params.json" if kind == "meta" else name
    case[name] = json.dumps(json.loads(case[name]) | {field: 10**9}).encode()
    write_case(case, tmp_path)
    with at_most(2**21), pytest.raises(CheckpointError, match="at most 1,024|_layers=1000000"):
        read(tmp_path)


# Positions


def with_positions(tmp_path, seq_len):
    case = dict(valid("hf")[0])
    config = json.loads(case["config.json"]) | {"max_position_embeddings": seq_len}
    write_case(case | {"config.json": json.dumps(config).encode()}, tmp_path)
    return tmp_path


def test_positions_that_a_file_claims_cost_no_disk(tmp_path, capsys):
    folder, out = with_positions(tmp_path, 2**27 - 1), tmp_path / "x.bin"
    assert main(["export", str(out), "--hf", str(folder)]) == 1
    said = capsys.readouterr().err
    assert "seq_len=134,217,727 take 2,147,483,632 bytes, the weights" in said
    assert "--seq-len N" in said and "--version 1" in said and said.count("\n") == 1
    assert not out.exists()
    for version in ("1", "2"):
        assert main(["export", str(out), "--hf", str(folder), "--version", version]) == 0
        assert out.stat().st_size < 10_000
        assert checkpoint.read_header(out).config.seq_len == 2**27 - 1


def test_positions_that_the_user_asks_for(tmp_path, monkeypatch):
    monkeypatch.setattr("llama2np.formats.write._LARGEST_TABLES", 1000)
    source = huggingface.read(with_positions(tmp_path, 2**10))
    with pytest.raises(CheckpointError, match="choose a number of positions"):
        write_bin(source, tmp_path / "x.bin", 0)
    write_bin(source.with_seq_len(2**10), tmp_path / "x.bin", 0)
    assert (tmp_path / "x.bin").stat().st_size > 16 * 2**10


@pytest.mark.parametrize("seq_len, fits", ((131_072, True), (1_010_000, True), (10**8, False)))
def test_tables_are_smaller_than_the_weights(seq_len, fits):
    """Qwen 2.5 has a 7B model with a context of 1,010,000."""
    source = Source("x", Config(4096, 11008, 32, 32, 32, 32000, seq_len), False, {})
    header = Header(0, source.config, False)
    if fits:
        _check_tables(header, source)
    else:
        with pytest.raises(ValueError, match="take 51,200,000,000 bytes"):
            _check_tables(header, source)


def test_tables_of_wide_heads_take_no_memory():
    config = Config(2**17, 1, 1, 1, 1, 3, 4096)
    with at_most(2**23):
        assert next(rope_tables(config)).shape == (1, 2**16)
    narrow = Config(4, 1, 1, 1, 1, 3, 20_000)
    assert sum(len(block) for block in rope_tables(narrow)) == 40_000


def test_tables_of_zeros_take_no_memory(tmp_path):
    header = Header(0, Config(4, 4, 1, 1, 1, 4, 2**20), True)
    tensors = {n: np.zeros(shape, np.float32) for n, shape in header.tensors() if "rope" not in n}
    with at_most(2**22):
        checkpoint.save(tmp_path / "x.bin", header, tensors)
    assert checkpoint.read_header(tmp_path / "x.bin") == header


# Tokenizers


def tokenizer_bin(path, *pieces):
    pieces = [b"<unk>", b"<s>", b"</s>", *pieces]
    data = struct.pack("<I", max(map(len, pieces)))
    path.write_bytes(data + b"".join(struct.pack("<fi", 0, len(p)) + p for p in pieces))
    return path


def tokenizer_model(path, *pieces):
    kinds = {b"<unk>": b"\2", b"<s>": b"\3", b"</s>": b"\3"}
    data = b""
    for piece in [*kinds, *pieces]:
        data += _field(1, _field(1, piece) + b"\x18" + kinds.get(piece, b"\1"))
    path.write_bytes(data + _field(2, b"\x18\2"))  # byte pairs
    return path


@pytest.mark.parametrize("make", (tokenizer_bin, tokenizer_model))
def test_long_pieces(tmp_path, make):
    path = make(tmp_path / f"x.{make.__name__.partition('_')[2]}", b"a" * 2048)
    assert Tokenizer.load(path).decode([3]) == "a" * 2048
    make(path, b"a" * 2049)
    with pytest.raises(TokenizerError, match="2,?048|too long"):
        Tokenizer.load(path)


def test_a_piece_of_30_megabytes(tmp_path):
    path = tokenizer_bin(tmp_path / "x.bin", b"a" * 30_000_000)
    with at_most(40_000_000), pytest.raises(TokenizerError, match="claims 30000000 bytes"):
        Tokenizer.load(path)


@pytest.mark.parametrize("make", (tokenizer_bin, tokenizer_model))
def test_many_pieces(tmp_path, monkeypatch, make):
    for module in (sentencepiece_model, llama2c_bpe, models):
        monkeypatch.setattr(module, "MAX_PIECES", 200)
    path = make(tmp_path / f"x.{make.__name__.partition('_')[2]}")
    assert Tokenizer.load(path).vocab_size == 3
    make(path, *(b"%d" % i for i in range(400)))
    with pytest.raises(TokenizerError, match="201 pieces|more than 200 pieces"):
        Tokenizer.load(path)


# JSON, archives, saved states


def test_large_json(tmp_path):
    limits = {"config.json": json_file.LARGEST_CONFIG, "model.safetensors.index.json": 2**24}
    assert limits["model.safetensors.index.json"] == json_file.LARGEST_INDEX
    for name, limit in limits.items():
        folder = tmp_path / name
        folder.mkdir()
        write_case(valid("hf")[1], folder)
        with open(folder / name, "r+b") as file:
            file.truncate(limit + 1)
        with at_most(2**21), pytest.raises(CheckpointError, match=f"larger than {limit:,} bytes"):
            huggingface.read(folder)


@pytest.mark.parametrize("kind", ("torch", "state"))
def test_a_directory_of_many_files(tmp_path, monkeypatch, kind):
    """zipfile reads it whole, whatever the end of the archive claims."""
    write_case(valid(kind)[0], tmp_path)
    read = {
        "torch": lambda: TorchFile(tmp_path / "model.pt"),
        "state": lambda: State.load(tmp_path / "state.npz", SMALL),
    }[kind]
    read()
    monkeypatch.setattr(files, "_LARGEST_DIRECTORY", 100)
    with pytest.raises(ValueError, match=r"directory claims [\d,]+ bytes, expected at most 100"):
        read()


def test_a_large_state_can_be_read(tmp_path, monkeypatch):
    """The limit is the directory's, not that of what is in the archive."""
    monkeypatch.setattr(files, "_LARGEST_DIRECTORY", 1000)
    state = State(TINY)
    state.reserve(TINY.seq_len)
    state.pos = TINY.seq_len
    state.save(tmp_path / "x.npz")
    assert (tmp_path / "x.npz").stat().st_size > 30 * 1000
    assert State.load(tmp_path / "x.npz", TINY).pos == TINY.seq_len


def test_a_saved_state_with_a_large_config(tmp_path):
    State(SMALL).save(tmp_path / "x.npz")
    arrays = dict(np.load(tmp_path / "x.npz"))
    np.savez(tmp_path / "x.npz", **arrays | {"config": np.array("[" + "[]," * 30_000 + "0]")})
    with at_most(2**19), pytest.raises(ValueError, match="config is larger than 65,536 bytes"):
        State.load(tmp_path / "x.npz", SMALL)
    assert zipfile.is_zipfile(tmp_path / "x.npz")


# Standard input


def test_standard_input_without_end(monkeypatch, capsys):
    for argv in (["run", "-i", "-"], ["lens", "-i", "-"]):
        with open("/dev/zero") as endless, at_most(2**24):
            monkeypatch.setattr("sys.stdin", endless)
            assert main(argv) == 1
        assert "standard input: more than 4,194,304 bytes" in capsys.readouterr().err


def test_a_chat_turn_without_end(monkeypatch):
    with open("/dev/zero") as endless, at_most(2**25):
        monkeypatch.setattr("sys.stdin", endless)
        with pytest.raises(ValueError, match="standard input: more than 4,194,304"):
            Screen().ask("User: ")


def test_as_much_as_there_may_be(monkeypatch):
    monkeypatch.setattr(flags, "LONGEST_TEXT", 5)
    for given, read in ((b"abcde", "abcde"), (b"abcd\n", "abcd"), (b"", "")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
        assert flags.piped() == read


# Headers of safetensors: entries, and what surrounds them, that are many or long

ENTRY = '"dtype":"F32","shape":[0],"data_offsets":[0,0]'
SIZE = 2 * 10**4
BOMBS = {
    "tensors": ("{%s}", '"%x":{' + ENTRY + "}", 8),
    "metadata": ('{"__metadata__":{%s}}', '"%x":""', 2),
    "one string": ('{"__metadata__":{"a":"%s"}}', "%x", 4),
    "dimensions": ('{"a":{"dtype":"F32","data_offsets":[0,0],"shape":[0,%s]}}', "1%.0s", 30),
    "what is ignored": ('{"a":{' + ENTRY + ',"x":[%s]}}', "[]%.0s", 40),
    "each with what is ignored": ("{%s}", '"%x":{' + ENTRY + ',"x":[' + "[]," * 200 + "0]}", 4),
    "one name": ("{%s}", '"a%.0s":{' + ENTRY + "}", 2),
    "white space": ("{%s}", "\n" * 100 + "%.0s", 2),
}


@pytest.mark.parametrize("name", BOMBS)
def test_large_headers(tmp_path, name):
    """json.loads took thirty times the size, and what was made of it as much again."""
    around, part, factor = BOMBS[name]
    count = SIZE // len(part % 2**16)
    between = "" if name in ("one string", "white space") else ","
    header = (around % between.join(part % i for i in range(count))).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with at_most(factor * len(header) + 2**17):
        try:
            found = safetensors.read(path)
        except CheckpointError as error:
            assert name == "dimensions" and "dimensions" in str(error)
        else:
            assert len(found) == {"tensors": count, "each with what is ignored": count}.get(
                name, name in ("what is ignored", "one name")
            )


def test_the_largest_header(tmp_path):
    with open(tmp_path / "x.safetensors", "wb") as file:
        file.write((10**8 + 1).to_bytes(8, "little"))
        file.truncate(10**8 + 9)
    with at_most(2**18), pytest.raises(CheckpointError, match="claims a header of 100,000,001"):
        list(inspection.describe(tmp_path / "x.safetensors"))
