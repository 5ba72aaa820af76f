"""Real processes under mpirun, on this machine. test_shares.py tests the rest, without MPI."""

import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import forks
import pytest

from llama2np import Llama
from llama2np.mpi import launch
from tests.conftest import ROOT, missing, parameters

_SCRIPT = """
import os, sys
import numpy as np
from llama2np import mpi
with mpi.load("stories-box", engine="numpy") as model:
    if model is not None:
        state = model.new_state()
        many = model.forward([1, 5, 3, 8, 2, 9, 4] * 20, state, all_logits=True)
        np.save(sys.argv[1], np.stack([many[-1], model.forward([3], state)]))
        print(model.generate("Tom", max_new_tokens=8, temperature=0.8, seed=5).text)
with mpi.load("stories-box-q8") as model:
    if model is not None:
        state = model.new_state()
        many = model.forward([1, 5, 3, 8, 2, 9, 4] * 20, state, all_logits=True)
        np.save(sys.argv[2], np.concatenate([many, [model.forward([3], state)]]))
print("rank", mpi.rank(), "is done")
try:
    with mpi.load("no-such-file"):
        pass
except ValueError as error:
    print("rank", mpi.rank(), "error", error)
except OSError as error:
    print("rank", mpi.rank(), "no file", error.filename)
"""


@pytest.fixture(scope="module")
def mpirun():
    """mpirun(size, *words): a started process, in which Python runs as that many ranks."""
    beside = Path(sys.executable).with_name("mpirun")
    if find_spec("mpi4py") is None or not beside.exists():
        missing("mpi4py and an MPI are not installed in this environment")
    version = subprocess.run([beside, "--version"], capture_output=True, text=True).stdout
    flags = ["--oversubscribe"] if "Open MPI" in version else []
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    children = []

    def start(size, *words):
        command = [beside, *flags, "-n", str(size), sys.executable, *map(str, words)]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        more = dict(cwd=ROOT, text=True, env=os.environ | root, start_new_session=True)
        children.append(subprocess.Popen(command, **pipes, **more))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.communicate()


def test_the_command_has_the_tokens_of_one_process(mpirun):
    words = ["-m", "llama2np", "run", "stories-box-q8", "-t", "0", "-n", "40"]
    alone = forks.run(words, cwd=ROOT, capture_output=True, text=True)
    child = mpirun(2, *words)
    out, err = child.communicate(timeout=300)
    assert (child.returncode, out) == (0, alone.stdout), err


def test_a_script(mpirun, tmp_path):
    """`mpi.load`: what rank 0 computes, what the others do, and an error that all survive."""
    import numpy as np

    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    child = mpirun(3, script, tmp_path / "logits.npy", tmp_path / "q8.npy")
    out, err = child.communicate(timeout=300)
    assert child.returncode == 0, err
    model = Llama.load("stories-box", engine="numpy")
    state = model.new_state()
    many = model.forward([1, 5, 3, 8, 2, 9, 4] * 20, state)
    expected = np.stack([many, model.forward([3], state)])
    assert np.abs(np.load(tmp_path / "logits.npy") - expected).max() < 1e-5
    quantized = Llama.load("stories-box-q8")
    state = quantized.new_state()
    many = quantized.forward([1, 5, 3, 8, 2, 9, 4] * 20, state, all_logits=True)
    expected = np.concatenate([many, [quantized.forward([3], state)]])
    np.testing.assert_array_equal(np.load(tmp_path / "q8.npy"), expected)
    story = model.generate("Tom", max_new_tokens=8, temperature=0.8, seed=5).text
    assert story in out
    assert sorted(re.findall(r"rank (\d) is done", out)) == ["0", "1", "2"]
    assert "rank 0 no file no-such-file" in out


def test_errors_are_one_line_of_rank_0(mpirun):
    for words, text in (
        (["run", "no-such-file"], "llama2np run: no-such-file: No such file"),
        (["inspect", "stories-box"], "llama2np inspect: only run, chat, "),
    ):
        child = mpirun(2, "-m", "llama2np", *words)
        out, err = child.communicate(timeout=300)
        ours = [line for line in err.splitlines() if "llama2np" in line]
        assert (child.returncode, out, len(ours)) == (1, "", 1), err
        assert ours[0].startswith(text)


@pytest.mark.parametrize("rank", parameters([0, 1], [1]))
def test_a_killed_rank_ends_all(mpirun, rank):
    child = mpirun(2, "-c", _ENDLESS)
    pids = dict(child.stdout.readline().split() for _ in range(2))
    os.kill(int(pids[str(rank)]), signal.SIGKILL)
    start = time.monotonic()
    out, err = child.communicate(timeout=60)
    assert child.returncode != 0
    assert time.monotonic() - start < 60
    # mpirun names the rank, if it finds out before it has to end; MPICH's writes to stdout.
    assert (out + err).strip()


_ENDLESS = """
import os
from llama2np import mpi
print(mpi.rank(), os.getpid(), flush=True)
with mpi.load("stories-box", engine="numpy") as model:
    while model is not None:
        model.generate("Tom", max_new_tokens=50).text
"""


@pytest.mark.parametrize("rank", parameters([0, 1], [0]))
def test_an_error_inside_a_pass_ends_all_with_one_line(mpirun, rank):
    child = mpirun(2, "-c", _FAULT + _ENDLESS, rank)
    _, err = child.communicate(timeout=300)
    assert child.returncode == 1
    lines = [line for line in err.splitlines() if "llama2np: rank" in line]
    assert len(lines) == 1 and re.search(f"llama2np: rank {rank} on .*: KeyError: 'x'", lines[0])
    assert "Traceback" not in err


_FAULT = """
import sys
from llama2np import mpi
from llama2np.model.split_engine import Pieces
def fault(pieces, run, step, exchange=Pieces._exchange):
    exchange(pieces, run, step)
    if mpi.rank() == int(sys.argv[1]):
        raise KeyError("x")
Pieces._exchange = fault
"""


def test_launchers_are_recognized(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("OMPI_", "PMI_", "SLURM_", launch.SWITCH)):
            monkeypatch.delenv(name)
    assert not launch.launched()
    assert (launch.size(), launch.rank()) == (1, 0)
    for size, rank in (("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("PMI_SIZE", "PMI_RANK")):
        with monkeypatch.context() as patch:
            patch.setenv(size, "4")
            patch.setenv(rank, "3")
            assert launch.launched()
            assert (launch.size(), launch.rank()) == (4, 3)
            patch.setenv(launch.SWITCH, "0")
            assert not launch.launched()
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "1")
    assert not launch.launched()
    monkeypatch.setenv(launch.SWITCH, "1")
    assert launch.launched()
