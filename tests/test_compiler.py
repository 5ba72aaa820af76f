"""The second process that compiles: what it makes can be run, and it is never missed."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numba
import pytest
from conftest import ROOT
from numba.core.caching import NullCache

from llama2np import Llama, box
from llama2np.kernels.interpreter import go
from llama2np.kernels.lower import lower, make_all_ops
from llama2np.kernels.ops import rows
from llama2np.kernels.runtime import compiler
from llama2np.kernels.runtime.link import LINKED

pytestmark = pytest.mark.compiled
prepare = compiler.prepare  # conftest.py replaces it

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
    """A fake second process, which is also the function that starts it. It takes no kernel."""

    def __init__(self):
        self.commands, self.ended = [], []

    def __call__(self, command, **streams):
        self.commands.append(command)
        return self

    def kill(self):
        self.ended.append("killed")

    def wait(self, *_):
        self.ended.append("waited for")


class Kernel:
    """A fake kernel of LINKED, with a cache."""

    signatures = ()

    def __init__(self, name, cached=()):
        self.py_func = lambda: None
        self.py_func.__module__, self.py_func.__qualname__ = "kernels", name
        self.compiled, self._cache = [], SimpleNamespace(has=lambda kinds: kinds in cached)

    def compile(self, kinds):
        self.compiled.append(kinds)


@pytest.fixture
def process(monkeypatch):
    recorded = Recorded()
    monkeypatch.setattr(compiler.subprocess, "Popen", recorded)
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 2)
    return recorded


@pytest.fixture
def three(monkeypatch):
    made = [Kernel(name) for name in "abc"]
    for kernel in made:
        monkeypatch.setitem(LINKED, kernel, (kernel.py_func.__qualname__,))
    return made


def test_this_process_compiles_what_the_other_does_not_take(process, three):
    prepare(three)
    assert [kernel.compiled for kernel in three] == [[("a",)], [("b",)], [("c",)]]
    assert len(process.commands) == 1 and process.ended == ["killed", "waited for"]
    assert "['kernels.a', 'kernels.b', 'kernels.c']" in process.commands[0][-1]


def test_it_waits_for_what_the_other_process_has_taken(process, three, monkeypatch):
    def taking(command, stdin, **_):
        os.read(stdin, 2)
        return process

    monkeypatch.setattr(compiler.subprocess, "Popen", taking)
    prepare(three)
    assert [kernel.compiled for kernel in three] == [[], [("b",)], [("c",)]]
    assert process.ended == ["waited for", "killed", "waited for"]


def test_few_kernels_are_not_worth_a_process(process, three, monkeypatch):
    """What is cached or compiled is not to do any more."""
    prepare(three[:2])
    three[0]._cache = SimpleNamespace(has=lambda kinds: True)
    prepare(three)
    three[0]._cache, three[1].signatures = SimpleNamespace(has=lambda kinds: False), [("b",)]
    prepare(three)
    assert process.commands == [] and not any(kernel.compiled for kernel in three)


def test_without_a_cache_a_process_cannot_help(process, three):
    for kernel in three:
        kernel._cache = NullCache()
    prepare(three)
    assert process.commands == []


def test_it_is_no_use_where_there_is_one_processor(process, three, monkeypatch):
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 1)
    prepare(three)
    assert process.commands == []


@pytest.mark.parametrize("program", ("/usr/bin/uwsgi", "C:\\bin\\blender.exe", "", None))
def test_a_program_that_is_no_python_is_not_started_again(process, three, monkeypatch, program):
    monkeypatch.setattr(sys, "executable", program)
    prepare(three)
    assert process.commands == [] and not any(kernel.compiled for kernel in three)


def test_where_no_process_can_be_started_there_is_none(three, monkeypatch):
    def failing(*_, **__):
        raise PermissionError

    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 2)
    monkeypatch.setattr(compiler.subprocess, "Popen", failing)
    prepare(three)
    assert not any(kernel.compiled for kernel in three)


def test_two_threads_do_not_start_two_processes(process, three):
    with compiler._busy:
        prepare(three)
    assert process.commands == []


def test_called_kernels_come_first_and_their_callers_last(box_told, monkeypatch):
    expected = expected_of("stories-box")
    monkeypatch.setattr(compiler, "_is_cached", lambda kernel, kinds: False)
    for kernel in LINKED:
        monkeypatch.setattr(kernel, "overloads", type(kernel.overloads)())
    missing = compiler.missing(expected)
    (caller,) = [kernel for kernel in expected if list(compiler._called_by(kernel))]
    assert [missing[0]] == list(compiler._called_by(caller)) and missing[-1] is caller
    assert set(missing) == {*expected, missing[0]}


@pytest.mark.parametrize("name", box.NAMES)
def test_what_is_expected_is_compiled_for_the_types_that_come(name, box_told):
    """If the types written down were others, all of it would be compiled twice."""
    for kernel in expected_of(name):
        assert [*kernel.signatures, *kernel._cache.addresses] == [LINKED[kernel]]


def test_what_it_has_compiled_is_found_and_run(cold, tmp_path, box_told):
    """Of each sort one: the interpreter, an op, and an op that calls a kernel by its address."""
    expected = expected_of("stories-box")
    (caller,) = [kernel for kernel in expected if list(compiler._called_by(kernel))]
    missing = [go, rows.rmsnorm.function, caller]
    env = {**os.environ, "NUMBA_CACHE_DIR": str(cold(*map(file_name, missing)))}
    code = compiler._CODE.format(path=sys.path, names=[compiler._name(each) for each in missing])
    numbers = b"".join(i.to_bytes(2, "big") for i in range(len(missing)))
    command = [sys.executable, "-c", code]
    subprocess.run(command, input=numbers, env=env, cwd=tmp_path, check=True, timeout=300)
    command = [sys.executable, "-c", TELLS]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{box_told['stories-box']}\n1 []\n"


@pytest.mark.exhaustive  # as each part of it is tested above
def test_two_processes_compile_a_network(cold, box_told):
    """The whole of it, with a real second process, for kernels that are compiled fast."""
    ops = (rows.rmsnorm, rows.add, rows.swiglu)
    expected = {file_name(op.function) for op in ops}
    env = {**os.environ, "NUMBA_CACHE_DIR": str(cold(*expected)), "NUMBA_NUM_THREADS": "2"}
    command = [sys.executable, "-c", TELLS]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{box_told['stories-box']}\n")
    assert {
        path.name.split("-")[0] + "-" for path in Path(env["NUMBA_CACHE_DIR"]).rglob("*.nbc")
    } >= set(expected)


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
