"""A user's mistake is one line on standard error and status 1."""

import io
import os
import signal
import struct
import sys
import threading

import numpy as np
import pytest
from conftest import pairs
from endless import GOOD, GREEDY, SHAPE, TOKENIZER, checkpoint_bytes, tokenizer_bytes, write_folder

from llama2np.cli import main
from llama2np.cli.flags import one_line
from llama2np.cli.run import main as run
from llama2np.cli.screen import Screen


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("tiny"))


def header(**changes):
    """The good file with another header before its weights."""
    numbers = SHAPE | {"vocab_size": -300} | changes
    return struct.pack("<7i", *numbers.values()) + GOOD[28:]


@pytest.fixture
def refused(folder, capfd, monkeypatch):
    """refused(*argv) -> the one line on standard error with which the program says no."""
    monkeypatch.chdir(folder)

    def refused(*argv, out=""):
        status = run([str(word) for word in argv], prog="run.py")
        stdout, stderr = capfd.readouterr()
        assert (status, stdout) == (1, out)
        assert stderr.startswith("run.py: ") and stderr.endswith("\n")
        assert stderr.count("\n") == 1
        return stderr

    return refused


# --- models and tokenizers ---


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(b"", "an empty file", id="empty"),
        pytest.param(GOOD[:10], "28 10", id="10 bytes"),
        pytest.param(GOOD[:-1000], f"{len(GOOD):,} {len(GOOD) - 1000:,} truncated", id="truncated"),
        pytest.param(GOOD + bytes(4), f"{len(GOOD):,} {len(GOOD) + 4:,}", id="overlong"),
        pytest.param(header(dim=0), "dim=0", id="dim 0"),
        pytest.param(header(n_layers=-2), "n_layers=-2", id="negative"),
        pytest.param(header(hidden_dim=2**30), f"hidden_dim={2**30}", id="huge"),
        pytest.param(header(vocab_size=-(2**31)), f"vocab_size={2**31}", id="huge vocabulary"),
        pytest.param(header(n_kv_heads=3), "n_kv_heads=3 n_heads=4", id="n_kv_heads"),
        pytest.param(header(n_heads=5), "n_heads=5 dim=32", id="n_heads"),
        pytest.param(struct.pack("<Ii", 0x616B3432, 3) + GOOD, "version 3 expected", id="version"),
        pytest.param(struct.pack("<Ii", 0x616B3432, 1), "256 8 truncated", id="short version 1"),
        pytest.param(b"Once upon a time\n" * 99, "not a llama2.c checkpoint", id="text"),
        pytest.param(TOKENIZER, "not a llama2.c checkpoint", id="tokenizer"),
    ],
)
def test_a_bad_checkpoint(refused, tmp_path, data, words):
    path = tmp_path / "bad.bin"
    path.write_bytes(data)
    said = refused(path)
    for word in [str(path), *words.split()]:
        assert word in said


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("bad.bin", b"", "an empty file"),
        ("bad.bin", GOOD, "not a tokenizer.bin"),
        ("bad.bin", TOKENIZER[:-1], "piece 299 truncated"),
        ("bad.bin", tokenizer_bytes(301), "301 300 -z"),
        ("bad.model", GOOD, "not a sentencepiece model"),
    ],
    ids=["empty", "model", "truncated", "other vocabulary", "not sentencepiece"],
)
def test_a_bad_tokenizer(refused, tmp_path, name, data, words):
    path = tmp_path / name
    path.write_bytes(data)
    said = refused("model.bin", "-z", path)
    for word in [str(path), *words.split()]:
        assert word in said


def test_a_tokenizer_model_with_broken_pieces_is_named(refused, tmp_path):
    path = tmp_path / "bad.model"  # protobuf: piece 0 is "<unk>", piece 1 is not UTF-8
    path.write_bytes(b"\x0a\x09\x0a\x05<unk>\x18\x02" + b"\x0a\x08\x0a\x01\xff\x15\0\0\0\0")
    assert str(path) in refused("model.bin", "-z", path)


def test_a_folder_and_no_file(refused, tmp_path):
    assert f"{tmp_path}: a folder without params.json (Meta) or config.json (HF)" in refused(
        tmp_path
    )
    assert f"{tmp_path}: a directory without a tok" in refused("model.bin", "-z", tmp_path)
    assert "no.bin: No such file" in refused("no.bin")
    assert "no.bin: No such file" in refused("model.bin", "-z", "no.bin")


def test_a_name_of_two_lines_is_said_in_one(refused):
    assert "no" in refused("no\nsuch.bin")


def test_a_current_folder_that_is_gone_is_said(monkeypatch):
    """getcwd raises it, in a library as well. Others raise such an error, too: ssl does."""
    error = FileNotFoundError(2, "No such file")
    assert one_line(error) == "[Errno 2] No such file"

    def getcwd():
        raise error

    monkeypatch.setattr(os, "getcwd", getcwd)
    assert "current folder does not exist" in one_line(error)


def test_no_tokenizer_anywhere(refused, tmp_path, monkeypatch):
    (tmp_path / "model.bin").write_bytes(GOOD)
    monkeypatch.chdir(tmp_path)
    assert "tokenizer.bin: not in the current folder" in (said := refused("model.bin"))
    assert "-z" in said


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_weights_that_are_not_finite(refused, tmp_path, temperature):
    (tmp_path / "nan.bin").write_bytes(checkpoint_bytes(scale=np.nan))
    said = refused(tmp_path / "nan.bin", "-t", temperature, "-i", "AB", out="AB\n")
    assert "logits are not finite" in said


# --- flags ---


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("-t abc", "-t number 0 'abc'"),
        ("-t -1", "-t number 0 '-1'"),
        ("-t nan", "-t number 0 'nan'"),
        ("-t inf", "-t number 0 'inf'"),
        ("-p 2", "-p 0 1 '2'"),
        ("-p -0.1", "-p 0 1 '-0.1'"),
        ("-n x", "-n whole 0 'x'"),
        ("-n -3", "-n whole 0 '-3'"),
        ("-n 2.5", "-n whole 0 '2.5'"),
        ("-s abc", "-s whole 'abc'"),
        (f"-s {2**64}", f"-s {2**64 - 1} '{2**64}'"),
        ("--threads 0", "--threads 1 '0'"),
        ("--threads 1000", "threads 1 1000"),
        ("-m poem", "-m 'poem' generate chat"),
        ("-q 1", "-q --help"),
        ("--nonsense 1", "--nonsense --help"),
        ("--temp 1", "--temp --help"),  # no abbreviations
        ("-t", "-t argument"),
        ("-i", "-i argument"),
        ("--steps", "--steps argument"),
        ("another.bin", "another.bin --help"),
    ],
)
def test_a_bad_flag(refused, argv, words):
    said = refused("model.bin", *argv.split())
    for word in words.split():
        assert word in said


def test_no_arguments(capfd):
    """A command is needed; `run` without a model is in test_box.py."""
    assert main(["lens"]) == 1
    assert capfd.readouterr().err.startswith("llama2np lens: ")
    assert main([]) == 1
    assert capfd.readouterr().err.startswith("usage: ")


def test_a_prompt_longer_than_the_context(refused):
    said = refused("model.bin", "-i", "A" * 63)  # and BOS and a space
    assert "65" in said and "64" in said and "prompt" in said


def test_a_chat_turn_longer_than_the_context(refused):
    said = refused("model.bin", "-m", "chat", "-y", "", "-i", "A" * 64)
    assert "context" in said and "64" in said


def spoken(capfd, *argv):
    """The standard output of a run that has nothing to complain of."""
    assert run([str(word) for word in argv], prog="run.py") == 0
    out, err = capfd.readouterr()
    assert "run.py" not in err
    return out


DASHED = ["-x", "-t", "--steps", "-1", "-- A", "-x=A B", "=", "-i -", ""]


@pytest.mark.parametrize("pair", pairs(["-i", "--prompt"], DASHED), ids=str)
def test_a_value_may_begin_with_a_dash(folder, capfd, pair):
    flag, value = pair
    out = spoken(capfd, folder / "model.bin", flag, value, *GREEDY)
    assert out.startswith(value)
    assert out == spoken(capfd, folder / "model.bin", *GREEDY, f"--prompt={value}")


@pytest.mark.parametrize("flag", ["-i", "-y"])
def test_a_value_may_be_two_dashes(folder, capfd, flag):
    spoken(capfd, folder / "model.bin", flag, "--", *GREEDY)


@pytest.mark.parametrize(
    ("short", "long", "value"),
    [
        ("-t", "--temperature", "2"),
        ("-p", "--top-p", "0.1"),
        ("-s", "--seed", "8"),
        ("-n", "--steps", "6"),
        ("-i", "--prompt", "CD"),
    ],
)
def test_long_names_are_the_short_ones(folder, capfd, short, long, value):
    """The last value of a flag wins, and it makes a difference."""
    argv = (folder / "model.bin", *"-t 0.5 -p 0.8 -s 7 -n 40 -i AB".split())
    out = spoken(capfd, *argv, short, value)
    assert out == spoken(capfd, *argv, long, value) == spoken(capfd, *argv, f"{long}={value}")
    assert out != spoken(capfd, *argv)


def test_long_names_of_chat_are_the_short_ones(folder, capfd, monkeypatch, tmp_path):
    (tmp_path / "other.bin").write_bytes(TOKENIZER.replace(b"A", b"a"))
    outs = []
    for mode, system, tokenizer in ("-m", "-y", "-z"), ("--mode", "--system", "--tokenizer"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        argv = (mode, "chat", system, "S", tokenizer, tmp_path / "other.bin", "-i", "B", *GREEDY)
        outs.append(spoken(capfd, folder / "model.bin", *argv))
    assert outs[0] == outs[1] and outs[0].startswith("Assistant: ")


def test_ctrl_c_while_a_kernel_is_loaded_is_kept_for_the_next_piece(folder, monkeypatch, capsys):
    """llvmlite's callbacks swallow exceptions, so one must not be raised there."""
    screen = Screen()

    def in_numba():
        screen.interrupt(signal.SIGINT, sys._getframe())

    exec("def call(f): f()", scope := {"__name__": "numba.core.dispatcher"})
    scope["call"](in_numba)
    with pytest.raises(KeyboardInterrupt):
        screen.write("next")
    screen.write("then")
    assert capsys.readouterr().out == "then"
    with pytest.raises(KeyboardInterrupt):
        in_numba()


@pytest.mark.parametrize(
    "words",
    [
        ("run", "model.bin", "-n", "5", *GREEDY[:2]),
        ("inspect", "model.bin"),
        ("export", "x.bin", "--bin", "model.bin"),
        ("perplexity", "model.bin", "--file", "text.txt"),
        ("run", "no.bin"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_command_off_the_main_thread(folder, tmp_path, monkeypatch, capfd, words):
    """Of a program with a window, or a server; Python has signals for the main thread alone."""
    monkeypatch.chdir(tmp_path)
    for name in ("model.bin", "tokenizer.bin"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "text.txt").write_text("ABC")
    before = signal.getsignal(signal.SIGINT)
    expected = main(words), capfd.readouterr()[0]
    found = []
    thread = threading.Thread(target=lambda: found.append(main(words)))
    thread.start()
    thread.join()
    assert (found[0], capfd.readouterr()[0]) == expected
    assert expected[0] == (words[1] == "no.bin")
    assert signal.getsignal(signal.SIGINT) is before
