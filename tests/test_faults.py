"""What befalls programs: signals, full disks, files that change, folders that cannot be written."""

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, random_tensors

from llama2np.cli import flags
from llama2np.cli.export import main as export
from llama2np.formats import checkpoint, llama2c
from llama2np.formats.checkpoint import Header
from llama2np.formats.write import write_bin
from llama2np.model.transformer import State, Transformer

ROOT = Path(__file__).parents[1]
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, or expects SIGBUS")


# Signals

SLOW_EXPORT = """
import sys, time
from llama2np.cli.export import main
from llama2np.formats import write
def slowly(function):
    def blocks(*arguments):
        for i, block in enumerate(function(*arguments)):
            yield block
            print("writing", flush=True)
            time.sleep(60)
    return blocks
write._floats = slowly(write._floats)
def slow_folder(*arguments, real=write.as_folder):
    config, tensors = real(*arguments)
    return config, {name: Slow(tensor) for name, tensor in tensors.items()}
class Slow:
    def __init__(self, tensor):
        self.shape, self.blocks = tensor.shape, slowly(tensor.blocks)
write.as_folder = slow_folder
sys.exit(main(sys.argv[1:], "export.py"))
"""


@posix
@pytest.mark.parametrize(
    "version, name, status",
    (("0", "SIGTERM", 143), ("2", "SIGHUP", 129), ("-1", "SIGTERM", 143), ("-1", "SIGINT", 130)),
)
def test_an_export_that_is_ended_leaves_nothing(files, tmp_path, forked, version, name, status):
    if signal.getsignal(getattr(signal, name)) == signal.SIG_IGN:
        pytest.skip(f"{name} is ignored here, as under nohup, and by children, too")
    words = ["--bin", files / "model.bin", "--version", version]
    child = forked("-c", SLOW_EXPORT, tmp_path / "out", *words)
    assert child.stdout.readline() == "writing\n"
    assert len(list(tmp_path.iterdir())) > 1  # something was begun
    child.send_signal(getattr(signal, name))
    _, err = child.communicate(timeout=300)
    assert child.returncode == status and "Traceback" not in err
    assert os.listdir(tmp_path) == ["files"]


def test_a_signal_that_is_ignored_stays_so(monkeypatch):
    """As nohup wants it."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with flags.on_termination(flags.Ending()):
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    monkeypatch.delattr(signal, "SIGHUP", raising=False)  # Windows
    with flags.on_termination(flags.Ending()):
        assert callable(signal.getsignal(signal.SIGTERM))


@posix
@pytest.mark.parametrize(
    "name, stage",
    (
        ("SIGINT", "numpy"),
        ("SIGTERM", "numba"),
        ("SIGINT", "llama2np.kernels"),
        ("SIGINT", "llama2np.text.tokenizer"),
    ),
)
def test_a_signal_while_starting_is_no_traceback(files, python, name, stage):
    """Python tells of each import when it is done with it."""
    words = ["-X", "importtime", ROOT / "run.py", files / "model.bin", "-n", "0"]
    child = python(*words, stdin=subprocess.DEVNULL)
    for line in child.stderr:
        if line.rstrip().endswith(f" {stage}"):
            break
    child.send_signal(getattr(signal, name))
    _, err = child.communicate(timeout=300)
    assert child.returncode in (-getattr(signal, name), 128 + getattr(signal, name))
    assert "Traceback" not in err


@posix
def test_a_terminated_story_ends_at_once(files, forked):
    header = Header(1, checkpoint.Config(32, 48, 1, 4, 2, 20, 10**6), True)
    tensors = random_tensors(header)
    tensors["embedding"][:3] = 0
    checkpoint.save(files / "model.bin", header, tensors)
    words = [ROOT / "run.py", files / "model.bin", "-t", "1", "-s", "1", "-n", "0", "-i", "AB"]
    child = forked(*words, stdin=subprocess.DEVNULL)
    assert child.stdout.read(2) == "AB"
    child.terminate()
    assert child.communicate(timeout=300)[1] == "" and child.returncode == -signal.SIGTERM


# Files that change while they are mapped


@linux
def test_a_file_that_is_truncated_ends_the_process(files, forked):
    """By SIGBUS, as with any mapped file: SECURITY.md says so. Never with made-up weights."""
    code = """
import os, sys
from llama2np.formats import checkpoint
from llama2np.model.transformer import State, Transformer
model = Transformer(*checkpoint.load(sys.argv[1]))
os.truncate(sys.argv[1], 100)
model.forward([1, 2, 3], State(model.config))
print("survived")
"""
    child = forked("-c", code, files / "model.bin")
    out, _ = child.communicate(timeout=300)
    assert (child.returncode, out) == (-signal.SIGBUS, "")


def test_a_file_that_is_replaced_stays_what_it_was(write):
    """By a rename, as our export does, even onto the file that it reads."""
    path = write("x.bin", Header(0, TINY, True))
    model = Transformer(*checkpoint.load(path))
    before = model.forward([5, 6, 7], State(TINY))
    write_bin(llama2c.read_bin(path), path, 1)
    assert checkpoint.read_header(path).version == 1
    write("x.bin", Header(0, TINY, True), seed=1)
    np.testing.assert_array_equal(model.forward([5, 6, 7], State(TINY)), before)
    other = Transformer(*checkpoint.load(path)).forward([5, 6, 7], State(TINY))
    assert not np.array_equal(other, before)


# Disks and folders


@posix
@pytest.mark.parametrize("words", ("--bin model.bin --version -1", "--tokenizer tokenizer.model"))
def test_a_disk_that_is_full(files, tmp_path, forked, words):
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000));"
        "from llama2np.cli.export import main; sys.exit(main(sys.argv[1:], 'export.py'))"
    )
    words = [files / word if "model" in word else word for word in words.split()]
    # What counts lines of child processes would have no room for its file either.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    child = forked("-c", code, tmp_path / "out", *words, env=env)
    out, err = child.communicate(timeout=300)
    assert child.returncode == 1 and err.count("\n") == 1 and "File too large" in err
    assert os.listdir(tmp_path) == ["files"] and not out


def test_a_folder_that_cannot_be_written(files, tmp_path, capsys):
    """Root may write everywhere, but for what the kernel itself keeps."""
    closed = tmp_path / "closed"
    closed.mkdir(0o555)
    if os.access(closed, os.W_OK):
        closed = Path("/sys")
    if not closed.is_dir():
        pytest.skip("no folder here that cannot be written")
    words = ["--tokenizer", str(files / "tokenizer.model")]
    assert export([str(closed / "t.bin"), *words], "export.py") == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and str(closed) in told and not (closed / "t.bin").exists()


@posix
@pytest.mark.parametrize("words", ("inspect {}", "export {}.out --bin {} --version 1"))
def test_output_that_nobody_takes(files, forked, words):
    words = words.format(*[files / "model.bin"] * 2).split()
    read, written = os.pipe()
    os.close(read)
    child = forked("-m", "llama2np", *words, stdout=written)
    assert child.communicate(timeout=300)[1] == "" and child.returncode == 141
    os.close(written)
    if Path("/dev/full").exists():
        with open("/dev/full", "wb") as full:
            child = forked("-m", "llama2np", *words, stdout=full)
            err = child.communicate(timeout=300)[1]
        assert child.returncode == 1 and "No space left" in err and err.count("\n") == 1


# Again and again


@linux
@pytest.mark.compiled
def test_loads_leave_nothing(write, files):
    path = write("x.bin", Header(2, TINY, False, 16))

    def once():
        model = Transformer(*checkpoint.load(path))
        model.forward([1, 2, 3], State(TINY))
        list(llama2c.read_bin(files / "model.bin").tensors["layers.0.wq"].blocks())

    def held():
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        maps = Path("/proc/self/maps").read_text().count(".bin")
        return len(os.listdir("/proc/self/fd")), maps, pages * 4096

    for _ in range(10):
        once()
    opened, maps, memory = held()
    for _ in range(60):
        once()
    opened_after, maps_after, memory_after = held()
    assert (opened_after, maps_after) == (opened, maps)
    assert memory_after - memory < 4e6  # 60 times the file would be 9 MB
