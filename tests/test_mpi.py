"""Real processes under mpirun, on this machine. test_shares.py tests the rest, without MPI."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import forks
import numpy as np
import pytest

from llama2np import Llama
from llama2np.cli import current, main
from llama2np.mpi import launch
from llama2np.mpi.affinity import crowded, part_of
from llama2np.mpi.near import LONGEST_NAP, Near, bytes_for
from tests.conftest import ROOT, missing, parameters

_SCRIPT = """
import os, sys, time
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
from llama2np.mpi import peers
peers.near = lambda *arguments: None  # as on several machines
with mpi.load("stories-box-q8") as model:
    if model is not None:
        state = model.new_state()
        many = model.forward([1, 5, 3, 8, 2, 9, 4] * 20, state, all_logits=True)
        np.save(sys.argv[3], np.concatenate([many, [model.forward([3], state)]]))
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
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    child = mpirun(3, script, *(tmp_path / f"{name}.npy" for name in ("logits", "q8", "far")))
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
    for name in "q8", "far":
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), expected)
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
def test_a_stopped_rank_is_named_and_a_killed_one_ends_all(mpirun, rank):
    """The compiled engine exchanges in memory, the other one by messages."""
    child = mpirun(2, "-c", _IMPATIENT + _ENDLESS, ["numpy", "compiled"][rank])
    pids = dict(child.stdout.readline().split() for _ in range(2))
    assert child.stdout.readline() == "a text\n"
    stopped = int(pids["1"])  # for rank 0 the others do not wait between two passes
    os.kill(stopped, signal.SIGSTOP)
    named = rf"llama2np: rank 1 on .* \(process {stopped}\)"
    assert re.match(f"{named} has not answered for .* Waiting", child.stderr.readline())
    os.kill(stopped, signal.SIGCONT)
    assert re.match(f"{named} answered: going on", child.stderr.readline())
    os.kill(int(pids[str(rank)]), signal.SIGKILL)
    start = time.monotonic()
    out, err = child.communicate(timeout=60)
    assert child.returncode != 0
    assert time.monotonic() - start < 60
    # mpirun names the rank, if it finds out before it has to end; MPICH's writes to stdout.
    assert (out + err).strip()


_IMPATIENT = """
from llama2np.mpi import watch
watch._EACH = 0.05
"""
_ENDLESS = """
import os, sys, time
from llama2np import mpi
print(mpi.rank(), os.getpid(), flush=True)
with mpi.load("stories-box", engine=sys.argv[1]) as model:
    if model is not None:
        model.generate("Tom", max_new_tokens=5).text
        print("a text", flush=True)
    while model is not None and time.process_time() < 60:  # nobody ends it
        model.generate("Tom", max_new_tokens=50).text
"""


@pytest.mark.parametrize("rank", parameters([0, 1], [0]))
def test_an_error_inside_a_pass_ends_all_with_one_line(mpirun, rank):
    child = mpirun(2, "-c", _FAULT + _ENDLESS, "numpy", rank)
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
    if mpi.rank() == int(sys.argv[2]):
        raise KeyError("x")
    return exchange(pieces, run, step)
Pieces._exchange = fault
"""


def test_a_folder_of_answers_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(current, "ranks", object())
    words = ["perplexity", "stories-box", "--prompts", "x.jsonl", "--output", "folder"]
    assert main(words) == 1
    assert "a folder of answers is made by one process, or by --workers" in capsys.readouterr().err


def test_ranks_divide_processors():
    assert [part_of([[0, 1, 2, 3, 4]] * 2, i) for i in range(2)] == [[0, 1], [2, 3, 4]]
    assert part_of([[0, 1], [2, 3]], 1) == [2, 3]  # the launcher has bound them
    assert part_of([[0, 1], [0, 1], [0, 1]], 1) == [0, 1]  # there are too few
    assert part_of([[0, 1], [1, 2]], 1) == [1, 2]
    assert crowded([[0, 1]] * 3) and not crowded([[0, 1]] * 2) and not crowded([[0], [1]])


@pytest.mark.compiled
def test_ranks_of_one_machine_exchange_in_memory():
    """Each rank is a thread here. Slots are used again, so what they had must have been read."""
    size, rounds = 3, 300
    memory = np.zeros(bytes_for(size), np.uint8)
    window = SimpleNamespace(Shared_query=lambda rank: (memory, 1), Free=lambda: None)
    waits, wrong = [], []

    def run(rank):
        near = Near(window, rank, size, crowded=True, waiting=lambda: waits.append(rank))
        for i in range(rounds):
            kind, part = i % 3, np.full(5 + rank, 100 * i + rank, np.float32)
            if kind == 0:
                found = near.exchange(part)
            elif kind == 1:
                found = near.give(part, 0)
            else:
                numbers = np.array([i, 7 * i])
                found = near.tell(numbers) if rank == 0 else near.hear()[:2].tolist()
                if rank and found != [i, 7 * i]:
                    wrong.append((rank, i, found))
                continue
            if kind == 0 or rank == 0:
                each = [found[r, : 5 + r].tolist() for r in range(size)]
                if each != [[100 * i + r] * (5 + r) for r in range(size)]:
                    wrong.append((rank, i, each))
            if rank == i % size:
                time.sleep(0.0002)  # the others are faster
        near.free()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert not wrong and len(waits) % 2 == 0
    assert not any(each.is_alive() for each in threads)


def test_a_rank_that_waits_for_long_sleeps(monkeypatch):
    """Between two naps it looks once, so that it costs nothing while nobody asks anything."""
    memory, looks, naps = np.zeros(bytes_for(2), np.uint8), [], []
    window = SimpleNamespace(Shared_query=lambda rank: (memory, 1))
    waiting = Near(window, 1, 2, crowded=False, waiting=lambda: None)

    def meet(*arguments):
        looks.append(arguments[-1])
        return len(looks) == 300

    monkeypatch.setattr(waiting, "_meet", meet)
    monkeypatch.setattr(time, "sleep", naps.append)
    waiting.hear()
    assert looks[1:] == [1] * 299 and len(naps) == 298
    assert naps == sorted(naps) and sum(naps[:100]) > 0.05 and naps[-1] == LONGEST_NAP


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
