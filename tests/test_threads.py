"""Several Python threads at once, and forked processes: all compute the same bits.

Each test is a process of its own: threads are started once, and what goes wrong ends the process.
"""

import os
from pathlib import Path

import forks
import pytest
from conftest import random_tensors

from llama2np.formats import checkpoint
from llama2np.formats.checkpoint import Header
from llama2np.model.config import Config

ROOT = Path(__file__).parents[1]
# Wide enough for threads to share each matrix, in float32 and in int8, and attention.
CONFIG = Config(256, 256, 1, 8, 4, 300, 200)
HEADERS = {"float32": Header(1, CONFIG, True), "int8": Header(2, CONFIG, True, 64)}

# Each thread of a call shares, whatever it costs: else a busy machine would let it run alone.
START = """
import multiprocessing, sys, threading, types
import numpy as np
from llama2np.formats import checkpoint
from llama2np.kernels.runtime import pool
from llama2np.model.transformer import State, Transformer
pool.threads = lambda: 3
pool.Backoff = lambda: types.SimpleNamespace(threads=lambda n, own=1: n, waited=lambda _: None)
pool.POOL.backoff = pool.Backoff()
model = Transformer(*checkpoint.load(sys.argv[1]))

def logits(first):
    state = State(model.config)
    rows = [model.forward([first] * 100, state)]  # a prompt in one block
    for _ in range(10):
        rows.append(model.forward([int(rows[-1].argmax())], state))
    return np.stack(rows).tobytes()

def workers():
    return sum(thread.name.startswith("llama2np worker") for thread in threading.enumerate())
"""
THREADS = """
alone = [logits(first) for first in range(4)] if sys.argv[2] == "used" else None
found = [None] * 4
def work(i):
    found[i] = logits(i)
threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert found == (alone or [logits(first) for first in range(4)])
print("same", workers())
"""
FORK = """
if sys.argv[2] == "used":
    before = logits(7)
    assert workers() == 2
context = multiprocessing.get_context("fork")
queue = context.Queue()
child = context.Process(target=lambda: queue.put((logits(7), workers())))
child.start()
found, theirs = queue.get(timeout=60)
child.join()
assert child.exitcode == 0 and theirs == 2  # workers of its own
assert found == logits(7)  # and here it goes on as before
print("same", workers())
"""
pytestmark = pytest.mark.compiled


@pytest.fixture(scope="module", params=HEADERS)
def path(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("wide") / "model.bin"
    header = HEADERS[request.param]
    checkpoint.save(path, header, random_tensors(header))
    return path


def run(code, path, *arguments):
    """Run code after START in a process; return what it says."""
    command = ["-W", "ignore", "-c", START + code, path, *arguments]
    done = forks.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("used", ("used", "fresh"))
def test_threads_get_the_bits_they_get_alone(path, used):
    assert run(THREADS, path, used) == ["same", "2"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("used", ("used", "fresh"))
def test_a_forked_process_goes_on_with_workers_of_its_own(path, used):
    assert run(FORK, path, used) == ["same", "2"]


FORK_INSIDE = """
logits(7)
stop, found = threading.Event(), []
def keep_reading():
    while not stop.is_set():
        found.append(logits(7))
thread = threading.Thread(target=keep_reading)
thread.start()
context = multiprocessing.get_context("fork")
for _ in range(5):
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put(logits(7)))
    child.start()
    found.append(queue.get(timeout=60))
    child.join()
    assert child.exitcode == 0
stop.set()
thread.join()
assert len(set(found)) == 1
print("same")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_process_may_be_forked_while_another_thread_computes(path):
    assert run(FORK_INSIDE, path) == ["same"]
