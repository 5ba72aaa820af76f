"""What only a process of its own can show: pipes, signals, locales, interrupts, full disks."""

import errno
import io
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import forks
import pytest
from conftest import ROOT
from endless import GREEDY, write_folder

from llama2np.cli.run import main as run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("tiny"))


NUMPY = ("--engine", "numpy")  # half of the time, for what is not about kernels
PROMPT = "Ünï 日本 🦙"


@pytest.fixture
def start():
    """start(*argv, **options) -> run.py in a process of its own, which ends with the test.

    It is a fork (forks.py), unless popen=subprocess.Popen is given.
    """
    children = []

    def start(*argv, popen=forks.Popen, **options):
        streams = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        argv = [sys.executable, ROOT / "run.py", *argv]
        children.append(popen(argv, **streams | options))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.__exit__(None, None, None)  # closes its streams and waits


def finished(child, text=None):
    """(status, standard output, standard error) of a process, in bytes."""
    out, err = child.communicate(text, timeout=60)
    return child.returncode, out, err


def test_a_missing_file(start):
    status, out, err = finished(start("no.bin"))
    assert (status, out) == (1, b"")
    box = b"the bundled models are stories-box and stories-box-q8"
    assert err == b"run.py: no.bin: No such file or directory; " + box + b"\n"


def test_a_prompt_that_is_not_utf_8(folder, start):
    status, out, err = finished(start(folder / "model.bin", "-i", b"A\xffB"))
    assert (status, out) == (1, b"")
    assert err.startswith(b"run.py: --prompt: expected UTF-8, found byte 0xff")
    assert err.count(b"\n") == 1


def test_a_prompt_in_a_locale_that_is_not_utf_8(capsys):
    """Python passes the bytes of "é" on as surrogates, if the locale is C and its remedy is off."""
    assert run(["stories-box", "-i", "\udcc3\udca9", *GREEDY, *NUMPY], "run.py") == 0
    assert capsys.readouterr().out.startswith("é")


def test_standard_input_that_is_not_utf_8(folder, start):
    child = start(folder / "model.bin", "-i", "-", stdin=subprocess.PIPE)
    status, out, err = finished(child, b"A\xffB")
    assert (status, out) == (1, b"")
    assert err.startswith(b"run.py: standard input: expected UTF-8, found byte 0xff at byte 1")
    assert err.count(b"\n") == 1


def test_a_prompt_from_standard_input(folder, start, capfdbinary):
    """To the last byte, but for the newline that ends it."""
    prompt, argv = f" A\n {PROMPT} \n", (folder / "model.bin", *GREEDY, *NUMPY)
    child = start(*argv, "-i", "-", stdin=subprocess.PIPE)
    status, out, err = finished(child, f"{prompt}\n".encode())
    assert status == 0 and err.startswith(b"achieved tok/s: ")
    assert run([*map(str, argv), "-i", prompt], prog="run.py") == 0
    assert out == capfdbinary.readouterr().out
    child = start(*argv, "-i", "-", stdin=subprocess.PIPE)
    assert finished(child, f"{prompt}\r\n".encode())[1] == out  # as Windows ends a line
    assert out.startswith(prompt.encode())


@pytest.mark.parametrize(
    ("setting", "engine"),
    [("LC_ALL=C", ()), ("LANG=C", NUMPY), ("PYTHONIOENCODING=ascii", NUMPY)],
    ids=["LC_ALL=C", "LANG=C", "PYTHONIOENCODING=ascii"],
)
def test_whatever_the_locale_text_is_utf_8(folder, start, setting, engine):
    bare = {k: v for k, v in os.environ.items() if k != "LANG" and not k.startswith("LC_")}
    env = bare | dict([setting.split("=")])
    argv = (folder / "model.bin", "-i", PROMPT, *engine)
    status, out, err = finished(start(*argv, popen=subprocess.Popen, env=env))
    assert status == 0
    assert out.startswith(PROMPT.encode())


@pytest.mark.compiled
def test_a_reader_that_has_enough_ends_it_in_silence(folder, start):
    """As `| head -c 20` does."""
    child = start(folder / "endless.bin", *GREEDY, "-i", "A" * 30)
    assert child.stdout.read(20) == b"A" * 20
    child.stdout.close()
    assert (child.wait(60), child.stderr.read()) == (141, b"")


@pytest.mark.compiled
def test_an_interrupt_ends_the_line(folder, start, interruptible):
    child = start(folder / "endless.bin", *GREEDY, "-i", "AB")
    assert child.stdout.read(2000).startswith(b"AB")  # by then all kernels are compiled
    child.send_signal(signal.SIGINT)
    status, out, err = finished(child)
    assert (status, out[-1:], err) == (130, b"\n", b"")


INTERRUPTED = """
import os, signal, sys
from numba.core import event
from llama2np.cli import start

class Interrupts(event.Listener):
    left = int(sys.argv[1])

    def on_start(self, _):
        if self.left:
            self.left -= 1
            os.kill(os.getpid(), signal.SIGINT)

    def on_end(self, _):
        pass

event.register("numba:compile", Interrupts())
sys.exit(start("run", sys.argv[2:], prog="run.py"))
"""


@pytest.fixture
def interrupted(folder, python, cold):
    """interrupted(count): a run that gets one interrupt, or more, in the middle of compiling."""

    def run(count):
        cache = cold("rows.rmsnorm", "rows.add")
        env = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
        child = python("-c", INTERRUPTED, count, folder / "model.bin", *GREEDY, env=env)
        out, err = child.communicate(timeout=60)
        return child.returncode, out.strip(), err, len(list(cache.rglob("rows.*.nbc")))

    return run


@pytest.mark.compiled
def test_an_interrupt_while_compiling(interrupted, warm):
    """It waits until that is done; what is compiled is kept."""
    kept = len(list(warm[0].rglob("rows.*.nbc")))
    assert interrupted(1) == (130, "", "", kept)


@pytest.mark.compiled
def test_two_interrupts_while_compiling(interrupted):
    """The second one does not wait."""
    assert interrupted(2)[:3] == (-signal.SIGINT, "", "")


@pytest.mark.compiled
def test_an_interrupt_in_an_answer_ends_the_answer(folder, start, interruptible):
    """And at the question for the next one, the chat."""
    argv = (folder / "endless.bin", "-m", "chat", "-y", "", "-i", "AB", *GREEDY)
    child = start(*argv, stdin=subprocess.PIPE)
    assert child.stdout.read(2000).startswith(b"Assistant: ")
    child.send_signal(signal.SIGINT)
    said = b""
    while not said.endswith(b"\nUser: "):
        said += child.stdout.read(1)
    child.send_signal(signal.SIGINT)
    status, out, err = finished(child)
    assert (status, out, err) == (130, b"\n", b"")


def test_an_interrupt_after_the_reader_has_gone(folder, start, interruptible):
    """As where Ctrl-C ends both sides of a pipe."""
    argv = (folder / "model.bin", "-m", "chat", "-y", "")
    child = start(*argv, stdin=subprocess.PIPE)
    child.stdout.read(len("User: "))
    child.stdout.close()
    for _ in range(20):  # an early one may come before it waits for its input
        child.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            child.wait(5)
            break
    # The last: where leaving took so long that another one came, and nobody listened any more.
    assert child.wait(60) in (130, 141, -signal.SIGINT)
    assert child.stderr.read() == b""


def test_a_disk_that_fills_up_midway(folder, capsys, monkeypatch):
    class Disk(io.StringIO):
        def write(self, text):
            if len(self.getvalue() + text) > 9:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(text)

    monkeypatch.setattr(sys, "stdout", Disk())
    assert run([str(folder / "model.bin"), *GREEDY, "-i", "AB"], prog="run.py") == 1
    assert len(sys.stdout.getvalue()) == 9
    assert capsys.readouterr().err == "run.py: [Errno 28] No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk(folder, start):
    with open("/dev/full", "wb") as full:
        status, _, err = finished(start(folder / "model.bin", *GREEDY, stdout=full))
    assert status == 1
    assert b"No space left" in err and err.count(b"\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="closes streams as a POSIX shell does")
@pytest.mark.parametrize("closed", ["-i - <&-", "-m chat <&-", ">&-"])
def test_a_closed_stream_is_no_traceback(folder, closed):
    command = f'exec "$0" "$@" {closed}'
    argv = ["sh", "-c", command, sys.executable, ROOT / "run.py", folder / "model.bin", *NUMPY]
    result = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert b"Traceback" not in result.stderr
    assert result.stderr.count(b"\n") <= 1
