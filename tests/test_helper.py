"""The process that compiles at the same time: what it makes can be run, and it is never missed."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numba
import pytest
from conftest import ROOT

from llama2np import kernels
from llama2np.kernels import helper

pytestmark = pytest.mark.compiled

TELLS = """
from llama2np import Llama
from llama2np.kernels import helper, one_token

model, kernel = Llama.load("stories-box"), one_token.one_token_float32
print(model.generate("One day", temperature=0, max_new_tokens=12).read())
compiled = [kernel, *helper._called_by(kernel)]
print(len(compiled), [each.stats.cache_misses for each in compiled if each.stats.cache_misses])
"""


class Recorded:
    """Stands for a process, and for what starts it."""

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
    monkeypatch.setattr(helper, "_helper", helper._Helper())
    helper._helper.expected.append(kernels.one_token_float32.__wrapped__)
    fake = SimpleNamespace(
        Popen=recorded, DEVNULL=-3, _args_from_interpreter_flags=lambda: ["-X", "utf8"]
    )
    monkeypatch.setattr(helper, "subprocess", fake)
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 2)
    return recorded


def test_it_starts_when_something_is_missing_and_ends_when_all_is_there(process):
    helper._helper.expected.append(kernels.sample)
    helper.missing()
    helper.missing()
    assert len(process.commands) == 1 and process.ended == []
    helper.found(kernels.add.py_func)
    helper.found(kernels.sample.py_func)
    assert process.ended == []
    helper.found(kernels.one_token_float32.__wrapped__.py_func)
    assert process.ended == ["killed", "waited for"]
    helper.missing()
    assert len(process.commands) == 1


def test_it_is_no_use_where_there_is_one_processor(process, monkeypatch):
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 1)
    helper.missing()
    assert process.commands == []


@pytest.mark.parametrize("program", ("/usr/bin/uwsgi", "C:\\bin\\blender.exe", "", None))
def test_a_program_that_is_no_python_is_not_started_again(process, monkeypatch, program):
    monkeypatch.setattr(sys, "executable", program)
    helper.missing()
    assert process.commands == []


def test_where_no_process_can_be_started_there_is_none(process, monkeypatch):
    def failing(*_, **__):
        raise PermissionError

    monkeypatch.setattr(helper.subprocess, "Popen", failing)
    helper.missing()
    helper.found(kernels.one_token_float32.__wrapped__.py_func)


@pytest.mark.parametrize("kernel", (kernels.one_token_float32, kernels.one_token_int8))
def test_what_is_expected_is_compiled_for_the_types_that_come(kernel, box_told):
    """If the types written down were others, all of it would be compiled twice."""
    signatures = kernel.__wrapped__.signatures
    assert signatures == [helper.APART[kernel.__wrapped__]]


def test_what_it_has_compiled_is_found_and_run(process, cold, tmp_path, box_told):
    (expected,) = helper._helper.expected
    missing = [expected, *helper._called_by(expected)]
    helper.missing()
    env = {**os.environ, "NUMBA_CACHE_DIR": str(cold(*map(file_name, missing)))}
    subprocess.run(process.commands[0], env=env, cwd=tmp_path, check=True, timeout=300)
    command = [sys.executable, "-c", TELLS]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{box_told['stories-box']}\n4 []\n"


def file_name(kernel):
    """How the files of a kernel begin in the cache."""
    function = kernel.py_func
    name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
    return name.replace("<", "").replace(">", "") + "-"


@pytest.fixture(scope="module")
def box_told():
    """What this process's kernels tell."""
    from llama2np import Llama, box

    told = {}
    for name in box.NAMES:
        told[name] = Llama.load(name).generate("One day", temperature=0, max_new_tokens=12).read()
    return told
