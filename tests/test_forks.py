"""A process that is forked while another thread compiles goes on, and compiles what it needs.

Each test is a process of its own, and its children have an alarm: what waits for ever is ended.
"""

import os
import subprocess
import sys
from pathlib import Path

import forks
import pytest

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.compiled,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
]

START = """
import os, signal, sys, threading, time
import numba
from llvmlite.binding import ffi
from numba.core.compiler_lock import global_compiler_lock
import llama2np.kernels

def compiled():
    'A function of its own each time, which is not in any cache.'
    @numba.njit
    def twice(x):
        return 2 * x
    return twice(21) == 42

def child(work):
    'Fork; whether the child comes to its end. One that waits for ever is ended by its alarm.'
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        os._exit(0 if work() else 3)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

def held(lock):
    'A thread that has this lock for a while, as one that compiles.'
    entered = threading.Event()
    def hold():
        with lock:
            entered.set()
            time.sleep(0.3)
    thread = threading.Thread(target=hold)
    thread.start()
    assert entered.wait(30)
    return thread
compiled()
"""
LOCKS = {
    "numba": "global_compiler_lock",
    "LLVM": "ffi.lib._lock",
}
HELD = """
thread = held({lock})
assert child({work})
thread.join()
assert compiled() and child(compiled)
"""
WORK = {
    "numba": "compiled",
    "LLVM": "compiled",
}
COMPILING = """
from llama2np import Llama
model = Llama.load("stories-box")
thread = threading.Thread(target=lambda: model.generate("Once", max_new_tokens=3).read())
thread.start()
time.sleep(0.1)
assert thread.is_alive() and child(compiled)
print("fine", flush=True)
os._exit(0)  # the rest of the compilation proves nothing more
"""
HOLDING = """
with global_compiler_lock, ffi.lib._lock:  # as a handler of signals that forks while we compile
    assert child(compiled)
    assert child(compiled)
assert not global_compiler_lock.is_locked()
thread = held(global_compiler_lock)  # nobody has kept it
thread.join()
"""
MANY = """
threads = [threading.Thread(target=lambda: [compiled() for _ in range(3)]) for _ in range(2)]
found = []
threads += [threading.Thread(target=lambda: found.append(child(compiled))) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert found == [True] * 4 and not global_compiler_lock.is_locked() and compiled()
"""


def run(code, **environment):
    command = ["-W", "ignore", "-c", START + code + "\nprint('fine')"]
    options = dict(cwd=ROOT, capture_output=True, text=True, timeout=300)
    if environment:  # numba reads it when it is imported
        done = subprocess.run([sys.executable, *command], env=os.environ | environment, **options)
    else:
        done = forks.run(command, **options)
    assert (done.returncode, done.stdout.strip()) == (0, "fine"), done.stderr


@pytest.mark.parametrize("lock", LOCKS)
def test_a_child_does_not_inherit_a_lock_that_nobody_will_release(lock):
    run(HELD.format(lock=LOCKS[lock], work=WORK[lock]))


def test_forks_while_a_model_is_compiled_for_the_first_time(tmp_path):
    run(COMPILING, NUMBA_CACHE_DIR=str(tmp_path), NUMBA_NUM_THREADS="1")  # without a helper


def test_a_fork_by_the_thread_that_compiles(tmp_path):
    run(HOLDING)


def test_threads_that_compile_and_threads_that_fork():
    run(MANY)
