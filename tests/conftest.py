"""What the tests share: the reference data, and tiny checkpoints made here."""

import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from llama2np import Llama
from llama2np.checkpoint import Header, save
from llama2np.model.config import Config
from tools.hostile import valid, write_case

# Threads that wait for work sleep: those that spin, as they would, make the tests ten times as long
# where other programs want the processors too. OpenMP reads this when it is first used.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# The same examples in every run, and no clock: on a busy machine a test may take its time.
settings.register_profile("llama2np", deadline=None, derandomize=True)
settings.load_profile("llama2np")

# Grouped-query, widths that are no power of two, more positions than a first KV cache holds.
TINY = Config(
    dim=48, hidden_dim=80, n_layers=3, n_heads=6, n_kv_heads=2, vocab_size=300, seq_len=96
)
ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items):
    """Without JIT, skip the tests that are marked `compiled`."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        skip = pytest.mark.skip(reason="too much arithmetic for plain Python")
        for item in items:
            if item.get_closest_marker("compiled"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of other programs' answers. In CI it has to be there."""
    folder = ROOT.parent / "shared" / "reference"
    if not folder.is_dir():
        reason = f"the reference data is not at {folder}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return folder


def random_tensors(header: Header, seed: int = 0) -> dict:
    """Small random weights, by name, as `checkpoint.save` takes them."""
    random = np.random.default_rng(seed)
    tensors = {}
    for name, shape in header.tensors():
        values = random.standard_normal(shape, np.float32)
        if header.quantized(name):
            scales = random.random((*shape[:-1], shape[-1] // header.group_size), np.float32)
            tensors[name] = random.integers(-127, 128, shape, np.int8), scales / 500
        else:
            tensors[name] = values * np.float32(0.2) + ("norm" in name)
    return tensors


@pytest.fixture
def write(tmp_path):
    """Write a random checkpoint: write("name.bin", header, seed=0) -> its path."""

    def write(name: str, header: Header, seed: int = 0) -> Path:
        save(tmp_path / name, header, random_tensors(header, seed))
        return tmp_path / name

    return write


@pytest.fixture
def files(tmp_path):
    """A model.bin, a tokenizer.bin for it, and tokenizer.model, in a folder of their own."""
    path = tmp_path / "files"
    path.mkdir()
    write_case(valid("tokenizer.model")[0], path)
    write_case(valid("bin")[0], path)
    return path


@pytest.fixture
def interruptible():
    """Lets child processes be interrupted even where these tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def python(interruptible):
    """python(*words, **options): a Python process, its streams piped, that ends with the test."""
    children = []

    def python(*words, **options):
        pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
        command = [sys.executable, "-B", *map(str, words)]
        children.append(subprocess.Popen(command, cwd=ROOT, text=True, **pipes | options))
        return children[-1]

    yield python
    for child in children:
        child.kill()
        child.communicate()


def write_tokenizer(path, count=TINY.vocab_size):
    """Specials, the bytes, and then one letter each, from "A" on; " " is the first of them."""
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n"] + [b"<0x%02X>" % i for i in range(256)]
    pieces += [b" "] + [bytes([ord("A") + i]) for i in range(count - len(pieces) - 1)]
    data = struct.pack("<I", 6)
    for i, piece in enumerate(pieces):
        data += struct.pack("<fi", -i, len(piece)) + piece
    path.write_bytes(data)
    return path


@pytest.fixture
def model(write, tmp_path):
    return Llama.load(write("tiny.bin", Header(1, TINY, True)), write_tokenizer(tmp_path / "t.bin"))


def scripted(model, monkeypatch, tokens):
    """Make the network want these tokens, one after the other."""
    script = iter(tokens)

    def forward(read, state, all_logits=False):
        state.pos += len(read)
        logits = np.zeros(TINY.vocab_size, np.float32)
        logits[next(script)] = 1
        return logits

    monkeypatch.setattr(model.transformer, "forward", forward)


def letters(text):
    return [260 + ord(letter) - ord("A") for letter in text]
