"""The background process that compiles too: what it makes can be run, and it is never missed."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numba
import pytest
from conftest import ROOT

from llama2np import Llama, box, kernels
from llama2np.kernels.interpreter import go
from llama2np.kernels.lower import lower, make_all_ops
from llama2np.kernels.ops import rows
from llama2np.kernels.runtime import compiler
from llama2np.kernels.runtime.link import LINKED

pytestmark = pytest.mark.compiled

TELLS = """
from llama2np import Llama
from llama2np.kernels.interpreter import go
from llama2np.kernels.lower import lower
from llama2np.kernels.runtime import compiler

model = Llama.load("stories-box")
print(model.generate("One day", temperature=0, max_new_tokens=12).read())
ops = {entry.op.function for entry in lower(model.transformer.program, 1, 1, 64).entries}
called = {kernel for op in ops for kernel in compiler._called_by(op)}
compiled = [go, *ops, *called]
print(len(called), [each.stats.cache_misses for each in compiled if each.stats.cache_misses])
"""


def expected_of(name):
    """The kernels that a network will call, in their order."""
    entries = lower(Llama.load(name).transformer.program, 1, 1, 64).entries
    return [go, *dict.fromkeys(entry.op.function for entry in entries)]


class Recorded:
    """A fake process, which is also the function that starts it."""

    def __init__(self):
        self.commands, self.ended = [], []

    def __call__(self, command, **streams):
        self.commands.append(command)
        return self

    def kill(self):
        self.ended.append("killed")

    def wait(self):
        self.ended.append("waited for")


@pytest.fixture
def process(monkeypatch):
    recorded = Recorded()
    monkeypatch.setattr(compiler, "_background", compiler._Background())
    compiler._background.expected += [go, rows.rmsnorm.function]
    fake = SimpleNamespace(
        Popen=recorded, DEVNULL=-3, _args_from_interpreter_flags=lambda: ["-X", "utf8"]
    )
    monkeypatch.setattr(compiler, "subprocess", fake)
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 2)
    return recorded


def test_it_starts_when_something_is_missing_and_ends_when_all_is_there(process):
    compiler.missing()
    compiler.missing()
    assert len(process.commands) == 1 and process.ended == []
    compiler.found(kernels.sample.py_func)
    compiler.found(rows.rmsnorm.function.py_func)
    assert process.ended == []
    compiler.found(go.py_func)
    assert process.ended == ["killed", "waited for"]
    compiler.missing()
    assert len(process.commands) == 1


def test_it_is_no_use_where_there_is_one_processor(process, monkeypatch):
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 1)
    compiler.missing()
    assert process.commands == []


@pytest.mark.parametrize("program", ("/usr/bin/uwsgi", "C:\\bin\\blender.exe", "", None))
def test_a_program_that_is_no_python_is_not_started_again(process, monkeypatch, program):
    monkeypatch.setattr(sys, "executable", program)
    compiler.missing()
    assert process.commands == []


def test_where_no_process_can_be_started_there_is_none(process, monkeypatch):
    def failing(*_, **__):
        raise PermissionError

    monkeypatch.setattr(compiler.subprocess, "Popen", failing)
    compiler.missing()
    compiler.found(go.py_func)


def test_one_kernel_is_not_worth_a_process(process):
    compiler.found(go.py_func)
    compiler.missing()
    assert process.commands == []


def test_only_what_is_not_compiled_yet_is_expected(process, box_told):
    compiler._background.expected.clear()
    compiler.expect([go, rows.rmsnorm.function])
    assert compiler._background.expected == []


@pytest.mark.parametrize("name", box.NAMES)
def test_what_is_expected_is_compiled_for_the_types_that_come(name, box_told):
    """If the types written down were others, all of it would be compiled twice."""
    for kernel in expected_of(name):
        assert kernel.signatures == [LINKED[kernel]]


def test_what_it_has_compiled_is_found_and_run(process, cold, tmp_path, box_told):
    """Of each sort one: the interpreter, an op, and an op that calls a kernel by its address."""
    expected = expected_of("stories-box")
    compiler._background.expected = list(expected)
    (caller,) = [kernel for kernel in expected if list(compiler._called_by(kernel))]
    missing = [go, rows.rmsnorm.function, *compiler._called_by(caller), caller]
    compiler.missing()
    env = {**os.environ, "NUMBA_CACHE_DIR": str(cold(*map(file_name, missing))), "NUMBA_OPT": "0"}
    subprocess.run(process.commands[0], env=env, cwd=tmp_path, check=True, timeout=300)
    command = [sys.executable, "-c", TELLS]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{box_told['stories-box']}\n1 []\n"


def file_name(kernel):
    """How the files of a kernel begin in the cache."""
    function = kernel.py_func
    name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
    return name.replace("<", "").replace(">", "") + "-"


@pytest.fixture(scope="module")
def box_told():
    """What this process's kernels tell."""
    told = {}
    for name in box.NAMES:
        told[name] = Llama.load(name).generate("One day", temperature=0, max_new_tokens=12).read()
    return told


def test_names_tell_kernels_apart():
    make_all_ops()
    assert len({compiler._name(kernel) for kernel in LINKED}) == len(LINKED)
