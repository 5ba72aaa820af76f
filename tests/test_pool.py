"""Threads that share steps: each unit is computed once, and the main thread waits for nobody."""

import threading
import time
from types import SimpleNamespace

import numba
import numpy as np
import pytest

from llama2np import Llama
from llama2np.kernels.interpreter import go
from llama2np.kernels.runtime import pool
from llama2np.kernels.runtime.memory import int64s
from llama2np.kernels.runtime.op import RUN, STEP_BYTES, op
from llama2np.kernels.runtime.shared import (
    BOARD,
    CALL_MEMBERS,
    HELPED,
    MEMBERS,
    RUNNING,
    UNHELPED,
    WAITED,
    WITHHELD,
    serve,
)
from llama2np.model.transformer import State

STEPS = 200
ALWAYS = SimpleNamespace(threads=lambda n, own=1: n, waited=lambda _: None)  # whatever it costs


@op("counts")
def count_units(s, run, first, last, scratch):
    """counts[i] += 1 for each unit i."""
    counts = int64s(s["counts"], s["units"])
    for i in range(first, last):
        counts[i] += 1


@op("counts units_before done")
def check_units(s, run, first, last, scratch):
    """done[0] = how many units of the step before have been computed once."""
    counts, done = int64s(s["counts"], s["units_before"]), int64s(s["done"], 1)
    for i in range(s["units_before"]):
        done[0] += counts[i] == 1


class Counting:
    """A table that counts the units of a step, and then looks at what has been counted."""

    def __init__(self, units, work):
        self.units, self.counts = units, np.zeros((STEPS, units), np.int64)
        self.done, self.run = np.zeros(STEPS, np.int64), np.zeros(1, RUN)
        self.run["rows"] = 1
        self.table = np.zeros((2 * STEPS, STEP_BYTES), np.uint8)
        for i in range(STEPS):
            at = {"counts": self.counts[i].ctypes.data}
            self.fill(2 * i, count_units, units=units, work=work, **at)
            done = {"done": self.done[i:].ctypes.data, "units_before": units}
            self.fill(2 * i + 1, check_units, units=1, work=2**20, **at, **done)
        nothing = np.zeros(1, np.int64), np.zeros((0, 0), np.float32), 1, 1, 0
        self.arguments = self.table.ctypes.data, 2 * STEPS, self.run.ctypes.data, *nothing

    def fill(self, row, op, **fields):
        record = self.table[row, : op.dtype.itemsize].view(op.dtype)[0]
        for name, value in {"op": op.address, **fields}.items():
            record[name] = value

    def check(self):
        assert (self.counts == 1).all()
        assert (self.done == self.units).all()  # before the next step has begun


@pytest.fixture
def workers():
    """workers(count): a separate pool whose calls use `count` threads."""
    made, before = [], pool.threads

    def workers(count):
        made.append(pool._Pool())
        made[-1].backoff = ALWAYS
        pool.threads = lambda: count
        return made[-1]

    yield workers
    pool.threads = before
    for each in made:
        each.stop()


@pytest.mark.compiled
@pytest.mark.parametrize("work", (2**15, 2**20))
@pytest.mark.parametrize("members", (1, 2, 3, 8))
def test_each_unit_is_computed_once_and_before_the_step_ends(members, work, workers):
    own = workers(members)
    for units in (2, 3, 7, 16, 65, 1000):
        for _ in range(3):
            counting = Counting(units, work)
            own.run(go, 2**30, *counting.arguments)
            counting.check()
    assert len(own.workers) == members - 1


@pytest.mark.parametrize("members", (2, 5))
def test_the_main_thread_needs_nobody(members):
    board, counting = np.zeros(BOARD, np.int64), Counting(23, 2**20)
    go(board.ctypes.data, members, 0, *counting.arguments)
    counting.check()
    assert board[MEMBERS] == members and board[RUNNING] == 0
    assert board[WAITED] == UNHELPED


def test_workers_that_compute_an_eighth_of_the_chunks_are_of_help():
    board, counting = np.zeros(BOARD, np.int64), Counting(23, 2**20)
    for helped, expected in ((0, UNHELPED), (9, UNHELPED), (1000, 0), (0, UNHELPED)):
        board[HELPED] = helped  # as if workers had computed these
        counting.counts[:], counting.done[:] = 0, 0
        go(board.ctypes.data, 2, 0, *counting.arguments)
        assert board[WAITED] == expected and board[HELPED] == 0


def open_step(counting, chunks):
    """A board with a step of which no chunk is taken."""
    board = np.zeros(BOARD, np.int64)
    board[0], board[MEMBERS] = (7 << 20) | (chunks << 10), 2
    row, run = counting.arguments[0], counting.arguments[2]
    board[32:39] = count_units.address, row, run, counting.units, chunks, 1, 1
    return board


def test_a_worker_computes_the_chunks_of_an_open_step():
    counting = Counting(5, 2**20)
    board = open_step(counting, 5)
    serve(board.ctypes.data, 1, 0, 50, 50)  # and returns, for nothing more comes
    assert (counting.counts[0] == 1).all() and board[16] == board[HELPED] == 5


def test_a_worker_that_is_no_member_of_the_call_takes_no_part():
    counting = Counting(5, 2**20)
    board = open_step(counting, 5)
    serve(board.ctypes.data, 2, 0, 50, 50)
    assert not counting.counts.any() and board[16] == 0


@pytest.mark.compiled
def test_workers_sleep_when_nothing_comes_and_end_when_they_are_stopped(workers):
    others = set(threading.enumerate())  # of which some may end meanwhile
    own = workers(3)
    for _ in range(2):  # those that sleep are woken
        counting = Counting(20, 2**20)
        own.run(go, 2**30, *counting.arguments)
        counting.check()
        wait_until(lambda: [worker.asleep for worker in own.workers] == [True, True])
    threads = [t for t in set(threading.enumerate()) - others if "llama2np worker" in t.name]
    assert len(threads) == 2
    own.stop()
    wait_until(lambda: not any(thread.is_alive() for thread in threads))


def wait_until(condition):
    """As long as it takes on a busy machine."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it did not happen")


@pytest.mark.compiled
def test_small_work_and_calls_beside_another_run_alone(workers):
    own = workers(2)
    for work in (2**17, 2**30):
        own.busy.acquire() if work > 2**20 else None  # another thread's call has the workers
        counting = Counting(20, 2**20)
        own.run(go, work, *counting.arguments)
        counting.check()
        assert own.workers == []
    own.busy.release()


@pytest.mark.compiled
def test_during_such_a_while_no_worker_is_woken(workers):
    own = workers(2)
    own.backoff = SimpleNamespace(threads=lambda n, own=1: 1)
    counting = Counting(20, 2**20)
    own.run(go, 2**30, *counting.arguments)
    counting.check()
    assert own.workers == []


def test_a_call_begins_without_the_threads_that_are_withheld():
    board, counting = np.zeros(BOARD, np.int64), Counting(23, 2**20)
    board[WITHHELD] = 2
    go(board.ctypes.data, 5, 0, *counting.arguments)
    counting.check()
    assert (board[MEMBERS], board[CALL_MEMBERS]) == (3, 5)


@pytest.mark.compiled
@pytest.mark.parametrize("waited", (0, 3_000_000))
def test_during_a_long_call_the_number_of_threads_is_chosen_again(waited, workers):
    own, waits, choices = workers(2), [], iter([1] * (not waited) + [2, 1, 1, 2] + [2] * 99)
    own.backoff = SimpleNamespace(threads=lambda n, own=1: next(choices), waited=waits.append)

    def kernel(_board, members, _scratch):
        assert (members, own.board[WITHHELD]) == (2, 0 if waited else 1)
        # As go and share do: the main thread has waited, or it begins alone.
        own.board[[CALL_MEMBERS, MEMBERS, WAITED, RUNNING]] = members, 1, waited, 1
        wait_until(lambda: own.board[MEMBERS] == 2)
        own.board[RUNNING] = 0

    own.run(kernel, pool._LONG_WORK)
    assert waits == [waited] * bool(waited)


def test_more_threads_than_processors_are_as_many():
    most = pool.max_threads()
    assert 1 <= most <= numba.config.NUMBA_NUM_THREADS
    try:
        for count, used in ((1, 1), (most, most), (2 * most, most)):
            pool.set_threads(count)
            assert pool.threads() == used
        pool.set_threads(1)
        elsewhere = []  # another thread chooses for itself
        thread = threading.Thread(target=lambda: elsewhere.append(pool.threads()))
        thread.start()
        thread.join()
        assert (elsewhere, pool.threads()) == ([most], 1)
        for count in (0, -1, 2 * most + 1):
            with pytest.raises(ValueError, match=f"1 to {2 * most} on this machine, not {count}"):
                pool.set_threads(count)
    finally:
        pool.set_threads(most)


@pytest.mark.compiled
@pytest.mark.parametrize("name", ("stories-box", "stories-box-q8"))
def test_a_network_gives_the_same_bits_to_any_number(name, monkeypatch):
    transformer = Llama.load(name).transformer
    monkeypatch.setattr(pool.POOL, "backoff", ALWAYS)
    found = []
    for members in (1, 2, 5):
        monkeypatch.setattr(pool, "threads", lambda members=members: members)
        # From position 127 on attention is shared, too.
        found.append(transformer.greedy(5, State(transformer.config), 150))
    for tokens, logits in found[1:]:
        np.testing.assert_array_equal(tokens, found[0][0])
        np.testing.assert_array_equal(logits, found[0][1])
