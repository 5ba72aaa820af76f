"""Where other programs want the processors too, and where a process may use only some of them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llama2np import Llama, processors
from llama2np.kernels.runtime import backoff, pool
from llama2np.kernels.runtime.shared import UNHELPED
from llama2np.model.state import State

ROOT = Path(__file__).parents[1]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Eight processors, a stopped clock, and no other program; all can be changed."""

    class Machine:
        now = 1000.0

        def run(self, others):
            (tmp_path / "loadavg").write_text(f"0.20 0.18 0.12 {others + 1}/412 11206\n")

        def forget(self):
            (tmp_path / "loadavg").unlink()

    machine = Machine()
    machine.run(0)
    monkeypatch.setattr(backoff, "_LOAD", tmp_path / "loadavg")
    monkeypatch.setattr(backoff.time, "monotonic", lambda: machine.now)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    return machine


def test_on_a_quiet_machine_all_threads_share_and_nothing_is_looked_at_again(machine):
    state = backoff.Backoff()
    assert state.threads(8) == 8
    machine.run(8)
    machine.now += 9
    assert state.threads(8) == 8


@pytest.mark.parametrize(("others", "expected"), ((1, 7), (7, 1), (8, 1), (99, 1)))
def test_threads_leave_the_processors_that_others_use(machine, others, expected):
    machine.run(others)
    state = backoff.Backoff()
    assert state.threads(8) == expected
    assert state.threads(1) == 1
    machine.run(0)
    assert state.threads(8) == expected  # for a moment
    machine.now += backoff._LOOK
    assert state.threads(8) == 8


def test_two_threads_share_where_others_leave_two_processors(machine):
    machine.run(6)
    assert backoff.Backoff().threads(2) == 2


def test_after_a_long_wait_half_as_many_share_for_a_while(machine):
    state = backoff.Backoff()
    assert state.threads(8) == 8
    state.waited(3_000_000)
    assert state.threads(8) == 4
    state.waited(3_000_000)
    assert state.threads(8) == 2
    machine.now += 1
    assert state.threads(8) == 8


def test_the_while_is_longer_after_each_wait_but_not_after_a_long_peace(machine):
    state, lengths = backoff.Backoff(), []
    for peace in (0, 0, 0, 0, 0, 0, 100):
        assert state.threads(2) == 2
        machine.now += peace
        state.waited(3_000_000)
        lengths.append(state._until - machine.now)
        machine.now = state._until
    np.testing.assert_allclose(lengths[:2], (0.03, 0.06))
    assert lengths[:5] == sorted(lengths[:5])
    np.testing.assert_allclose(lengths[5:], (backoff._MOST, 0.03))


@pytest.mark.parametrize("waits", (0, 1))
def test_while_others_run_threads_share_only_to_try_it(machine, waits):
    state = backoff.Backoff()
    for _ in range(waits):
        assert state.threads(2) == 2
        state.waited(3_000_000)
    machine.run(8)
    for _ in range(9):
        assert state.threads(2) == 1
        machine.now += backoff._MOST / 9.5
    machine.now += backoff._MOST
    assert state.threads(2) == 2  # what runs may be of low priority
    machine.now += 9
    assert state.threads(2) == 2
    state.waited(3_000_000)
    machine.now += 0.1
    assert state.threads(2) == 1


@pytest.mark.parametrize(("others", "expected"), ((0, 8), (1, 4), (None, 4)))
def test_threads_that_compute_nothing_are_used_less_unless_processors_are_free(
    machine, others, expected
):
    state = backoff.Backoff()
    assert state.threads(8) == 8
    if others is None:
        machine.forget()
    else:
        machine.run(7 + others)  # and our own: the main thread and seven others
    state.waited(UNHELPED)
    assert state.threads(8) == expected


@pytest.mark.parametrize("text", (None, "", "0.1 0.2 0.3", "0.1 0.2 0.3 x/y 5"))
def test_where_nothing_says_what_runs_threads_share(machine, text):
    backoff._LOAD.write_text(text) if text is not None else machine.forget()
    assert backoff.free_processors() is None
    assert backoff.Backoff().threads(8) == 8


def test_a_process_that_may_use_some_processors_does_not_look(machine, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {1, 2}, raising=False)
    machine.run(6)
    assert backoff.Backoff().threads(2) == 2


V1 = "9:name=systemd:/\n4:cpu,cpuacct:/docker/abc\n0::/\n"
QUOTAS = {
    "half": ("0::/\n", {"cpu.max": "50000 100000"}, 1),
    "one and a half": ("0::/\n", {"cpu.max": "150000 100000"}, 2),
    "none": ("0::/\n", {"cpu.max": "max 100000"}, 8),
    "more than there are": ("0::/\n", {"cpu.max": "6400000 100000"}, 8),
    "damaged": ("0::/\n", {"cpu.max": "50000"}, 8),
    "of a group above": ("0::/a/b\n", {"cpu.max": "300000 100000", "a/b/cpu.max": "max 1"}, 3),
    "the lower one": ("0::/a\n", {"cpu.max": "300000 100000", "a/cpu.max": "200000 100000"}, 2),
    "of another group": ("0::/a\n", {"b/cpu.max": "50000 100000"}, 8),
    "version 1": (
        V1,
        {
            "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "200000",
            "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000",
        },
        2,
    ),
    "version 1 in a container": (
        V1,
        {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"},
        1,
    ),
    "version 1, none": (
        V1,
        {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
        8,
    ),
    "no groups": (None, {}, 8),
    "nonsense": ("nonsense\n1:2\n", {}, 8),
}


@pytest.mark.parametrize("name", QUOTAS)
def test_a_quota_limits_the_processors(name, tmp_path, machine, monkeypatch):
    groups, files, expected = QUOTAS[name]
    monkeypatch.setattr(processors, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(processors, "_ROOT", tmp_path / "root")
    if groups is not None:
        (tmp_path / "cgroup").write_text(groups)
    for path, text in files.items():
        (tmp_path / "root" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / path).write_text(text + "\n")
    assert processors.processors() == expected


def test_processors_are_those_of_the_process(machine, monkeypatch):
    monkeypatch.setattr(processors, "_GROUPS", Path("nowhere"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3}, raising=False)
    assert processors.processors() == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    assert processors.processors() == 8


def python(code, **env):
    """What code prints in a process of its own, and its messages."""
    command, env = [sys.executable, "-B", "-c", code], os.environ | env
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr


def test_a_quota_limits_the_default_but_not_set_threads():
    code = """
import os, threading
from llama2np import processors
processors.processors.__globals__["_quotas"] = lambda: [0.5]
from llama2np import kernels
found = [kernels.threads()]
kernels.set_threads(2)
found.append(kernels.threads())
other = threading.Thread(target=lambda: found.append(kernels.threads()))
other.start(); other.join()
print(*found)
"""
    if processors.processors() > 1:
        assert python(code)[0] == ["1", "2", "1"]
    assert python(code, NUMBA_NUM_THREADS="2")[0][0] == "2"  # the user's word


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_a_process_with_one_processor_has_one_thread():
    code = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from llama2np import kernels
print(kernels.threads())
"""
    assert python(code)[0] == ["1"]


@pytest.mark.compiled
@pytest.mark.parametrize("name", ("stories-box", "stories-box-q8"))
def test_bits_do_not_depend_on_how_many_threads_share_each_call(name, monkeypatch):
    transformer = Llama.load(name).transformer
    found, random = [], np.random.default_rng(0)
    for choose in (lambda: 1, lambda: 2, lambda: int(random.integers(1, 3))):

        def count(_self, most, own=1, choose=choose):
            return min(choose(), most)

        monkeypatch.setattr(backoff.Backoff, "threads", count)
        state, logits = State(transformer.config), []
        for some in (1, 2, 1, 5, 1, 40, 130, 1, 3, 1):
            logits.append(transformer.forward([7] * some, state, all_logits=True))
        found.append(np.concatenate([*logits, transformer.greedy(5, state, 16)[1]]))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize("waited", (400_000_000, UNHELPED))
def test_a_call_that_waited_or_had_no_help_makes_threads_fewer(waited, monkeypatch):
    own = pool._Pool()
    monkeypatch.setattr(pool, "threads", lambda: 2)
    monkeypatch.setattr(backoff, "free_processors", lambda own=1: 0)
    own.backoff._until = backoff._NEVER

    def kernel(_board, members, _scratch):
        found.append(members)
        own.board[pool.WAITED] = waited

    found = []
    for _ in range(2):
        own.run(kernel, 2**30)
    own.stop()
    assert found == [1, 1] if pool.PLAIN else [2, 1]
