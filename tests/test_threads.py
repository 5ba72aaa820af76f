"""Many threads and forked processes, on each threading layer that numba may find.

Each test is a process of its own: the layer is chosen once, and what goes wrong ends the process.
"""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numba
import pytest
from conftest import random_tensors

from llama2np import checkpoint, kernels
from llama2np.checkpoint import Header
from llama2np.model.config import Config

ROOT = Path(__file__).parents[1]
# Wide enough for the threaded kernels, in float32 and in int8, and for threaded attention.
CONFIG = Config(256, 256, 1, 8, 4, 300, 200)
HEADERS = {"float32": Header(1, CONFIG, True), "int8": Header(2, CONFIG, True, 64)}

START = """
import multiprocessing, sys, threading
import numba, numpy as np
numba.config.THREADING_LAYER = sys.argv[2]
from llama2np import checkpoint, kernels
from llama2np.kernels.threads import layer
from llama2np.model.transformer import State, Transformer
model = Transformer(*checkpoint.load(sys.argv[1]))

def tokens(first):
    state, token, found = State(model.config), first, []
    logits = model.forward([first] * 100, state)  # a prompt in one block
    while state.pos < 110:
        found.append(int(logits.argmax()))
        logits = model.forward(found[-1:], state)
    return found
"""
THREADS = """
alone = [tokens(first) for first in range(4)] if sys.argv[3] == "used" else None
found = [[] for _ in range(4)]
threads = [threading.Thread(target=lambda i=i: found[i].extend(tokens(i))) for i in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
alone = alone or [tokens(first) for first in range(4)]
assert found == alone, (found, alone)
print(layer(), "same")
"""
FORK = """
if sys.argv[3] == "used":
    before = tokens(7)
context = multiprocessing.get_context("fork")
queue = context.Queue()
child = context.Process(target=lambda: queue.put(tokens(7)))
child.start()
found = queue.get(timeout=60)
child.join()
assert child.exitcode == 0
assert found == tokens(7)  # and here it goes on as before
print(layer(), "same")
"""
pytestmark = pytest.mark.compiled


@pytest.fixture(scope="module", params=HEADERS)
def path(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("wide") / "model.bin"
    header = HEADERS[request.param]
    checkpoint.save(path, header, random_tensors(header))
    return path


def run(code, path, layer, *arguments):
    """Run code after START in a process; return what it says, or skip if there is no such layer."""
    try:
        import_module(f"numba.np.ufunc.{layer if layer == 'workqueue' else f'{layer}pool'}")
    except ImportError:
        pytest.skip(f"numba finds no {layer} here")
    command = [sys.executable, "-B", "-W", "ignore", "-c", START + code, path, layer, *arguments]
    env = os.environ | {"OMP_WAIT_POLICY": "passive"}  # else idle threads keep the others waiting
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("used", ("used", "fresh"))
@pytest.mark.parametrize("layer", ("omp", "workqueue", "tbb"))
def test_threads_get_the_tokens_they_get_alone(path, layer, used):
    assert run(THREADS, path, layer, used) == [layer, "same"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("used", ("used", "fresh"))
@pytest.mark.parametrize("layer", ("omp", "workqueue", "tbb"))
def test_a_forked_process_goes_on(path, layer, used):
    assert run(FORK, path, layer, used) == [layer, "same"]


def test_a_forked_process_computes_the_same_bits(path):
    code = """
pipe = multiprocessing.get_context("fork").Pipe(False)
first = model.forward([7] * 100, State(model.config))
def work():
    pipe[1].send_bytes(model.forward([7] * 100, State(model.config)).tobytes())
child = multiprocessing.get_context("fork").Process(target=work)
child.start()
other = np.frombuffer(pipe[0].recv_bytes(), np.float32)
print(np.abs(first - other).max(), child.join())
"""
    # It reads a prompt token by token: in int8 that is the same, in float32 another order of sums.
    most = 0 if checkpoint.read_header(path).group_size else 1e-4
    assert float(run(code, path, "omp", "used")[0]) <= most


def test_more_threads_than_processors_are_as_many():
    most = numba.config.NUMBA_NUM_THREADS
    try:
        for count, used in ((1, 1), (most, most), (2 * most, most)):
            kernels.set_threads(count)
            assert numba.get_num_threads() == used
        for count in (0, 2 * most + 1):
            with pytest.raises(ValueError, match=f"1 to {2 * most} on this machine, not {count}"):
                kernels.set_threads(count)
    finally:
        kernels.set_threads(most)
