"""Output that cannot be written, of every command: one line, status 1, and nothing at exit."""

import io
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from llama2np.bench import machine, measure
from llama2np.cli import COMMANDS, flags, main, warmup
from llama2np.cli.screen import Screen
from llama2np.formats import llama2c
from llama2np.formats.write import write_bin

COMMAND_LINES = {
    "run": "run {} -i AB -t 0 -n 9",
    "chat": "run {} -m chat",
    "export": "export {}.out --bin {} --version 1",
    "inspect": "inspect {}",
    "lens": "lens {} -i AB",
    "attend": "attend {} -i AB -o {}.html",
    "perplexity": "perplexity {} --file {}.txt",
    "bench": "bench {} --prompt 4 --generate 2 --depth 0 --repeats 1 --threads 1",
    "warmup": "warmup",
    # These do their work in files, or need some: tests of their own run them.
    **{name: f"{name} --help" for name in ("train", "finetune", "classify", "tokenizer")},
    **{name: f"{name} --help" for name in ("pull", "list", "rm")},
    "generate": "generate --help",  # it prints nothing else on standard output
    "embed": "embed --help",
    "serve": "serve --help",  # nor does this one
    "help of chat": "chat --help",
    "help": "--help",
    "version": "--version",
    "help of a command": "inspect --help",
    "version of run": "run --version",
}
full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
buffered = pytest.mark.parametrize("unbuffered", (False, True), ids=("buffered", "unbuffered"))


@pytest.fixture(params=COMMAND_LINES)
def command(request, files, monkeypatch):
    """The words of a command line that succeeds, and prints, in little time."""
    monkeypatch.setattr(measure, "Memory", lambda: machine.Memory(2**16))
    monkeypatch.setattr(measure, "sgemm_speed", lambda threads: 1e9)
    report = type("Report", (), dict(compiled=0, kept=0, folder="f", seconds=0.0))
    monkeypatch.setattr(warmup, "warm_up", report)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.chdir(files)
    (files / "model.bin.txt").write_text("ABC")
    return COMMAND_LINES[request.param].replace("{}", "model.bin").split()


def test_every_command_is_tried():
    assert {line.split()[0] for line in COMMAND_LINES.values()} >= COMMANDS.keys()


@contextmanager
def output(monkeypatch, file, unbuffered):
    """Standard output into this file or descriptor, in the block."""
    raw = open(file, "wb", buffering=0)
    stream = io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw), write_through=unbuffered
    )
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        yield stream
    stream.close()  # as at exit: it raises where there is something that cannot be written


def status(argv):
    """What a process would end with."""
    try:
        return main(argv)
    except SystemExit as end:
        return end.code


@full
@buffered
def test_a_full_disk(command, monkeypatch, capfd, unbuffered):
    with output(monkeypatch, "/dev/full", unbuffered):
        assert status(command) == 1
    err = capfd.readouterr().err
    assert "No space left" in err.splitlines()[-1]
    assert err.count("\n") == 1 + err.count("achieved tok/s")


@buffered
def test_a_reader_that_has_gone(command, monkeypatch, capfd, unbuffered):
    """As `| head -1` goes."""
    read, written = os.pipe()
    os.close(read)
    with output(monkeypatch, written, unbuffered):
        assert status(command) == 141
    assert capfd.readouterr().err == ""


def test_a_closed_output(command, monkeypatch, capfd):
    """As with `>&-`: Python then has no standard output, and print says nothing."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert status(command) == 1
        assert sys.stdout is None
    err = capfd.readouterr().err
    assert err.startswith("llama2np") and err.endswith(
        ": standard output is closed, nothing can be written to it\n"
    )
    assert err.count("\n") == 1


@pytest.mark.parametrize("stderr", (None, "/dev/full"))
@full
def test_errors_that_nobody_hears(monkeypatch, stderr):
    with monkeypatch.context() as patch:
        stream = stderr and open(stderr, "w")
        patch.setattr(sys, "stderr", stream)
        assert status(["inspect", "no.bin"]) == 1
        assert status(["inspect", "--nonsense"]) == 1
        assert status(["nonsense"]) == 1
    if stream:
        stream.close()


@full
def test_the_stream_can_be_used_again(monkeypatch, tmp_path, capfd):
    """The program that called `main` may go on to print, elsewhere by then."""
    with output(monkeypatch, "/dev/full", False) as stream:
        assert status(["--version"]) == 1
        os.dup2(os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT), stream.fileno())
        print("after", flush=True)
    assert (tmp_path / "out").read_text() == "after\n"


@pytest.mark.skipif(os.name == "nt", reason="closes streams as a POSIX shell does")
@pytest.mark.parametrize("closed", (">&-", "2>&- >&-", "<&- >&- 2>&-"))
def test_a_process_without_streams(files, python, closed):
    """The file has only the output of the command: no library prints into it."""
    words = ["export", "out.bin", "--bin", "model.bin", "--version", "1"]
    shell = f"import os, sys; os.chdir({str(files)!r}); os.execvp('sh', sys.argv[1:])"
    line = f'exec "$@" {closed}'
    child = python("-c", shell, "sh", "-c", line, "sh", sys.executable, "-m", "llama2np", *words)
    _, err = child.communicate(timeout=300)
    assert child.returncode == 1
    assert err == ("" if "2>&-" in closed else err) and "Traceback" not in err
    write_bin(llama2c.read_bin(files / "model.bin"), files / "same.bin", 1)
    assert (files / "out.bin").read_bytes() == (files / "same.bin").read_bytes()


def test_ctrl_c_while_the_question_is_written(monkeypatch):
    """Python's input() ignores what a signal's handler raises then: the chat would wait on."""

    class Interrupted(io.StringIO):
        def flush(self):
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", io.StringIO("an answer\n"))
    monkeypatch.setattr(sys, "stdout", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        Screen().ask("User: ")


@pytest.mark.parametrize("text, line", (("a b\nc\n", "a b"), ("last", "last"), ("\n", "")))
def test_a_line_of_input_that_is_no_terminal(monkeypatch, capsys, text, line):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert Screen().ask("User: ") == line
    assert capsys.readouterr().out == "User: "
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(EOFError):
        Screen().ask("User: ")


def test_input_without_end(monkeypatch):
    """Open MPI's mpirun does not pass on the end: a line says so, and what helps."""
    read, write = os.pipe()
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("PMIX_NAMESPACE", "prterun-host-1@1")
    monkeypatch.setattr("llama2np.cli.streams._PATIENCE", 0.01)
    with open(read) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        os.write(write, b"a text\n")
        with pytest.raises(ValueError, match="Open MPI.*cat FILE"):
            flags.piped()
        os.write(write, b"another text\n")
        os.close(write)
        assert flags.piped() == "another text"
