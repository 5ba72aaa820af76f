"""Systems and accounts that lack what Linux has: modules, calls, a home, a folder to write."""

import os
import sys

import pytest
from conftest import TINY

from llama2np.cli.screen import Screen
from llama2np.formats import checkpoint, safetensors
from llama2np.formats.checkpoint import Header
from llama2np.kernels.runtime import cache_folder
from tools.hostile import valid, write_case


def test_no_home_variable(python):
    """A folder for compiled kernels is found without it. No folder at all: test_kernel_cache.py."""
    env = {name: value for name, value in os.environ.items() if name != "HOME"}
    env["NUMBA_CACHE_DIR"] = ""
    child = python("-c", "from llama2np.kernels import CACHE_FOLDER; print(CACHE_FOLDER)", env=env)
    out, err = child.communicate(timeout=300)
    assert child.returncode == 0 and out not in ("", "None\n") and not err


@pytest.mark.compiled
@pytest.mark.skipif(os.name == "nt", reason="no file size limit")
def test_a_disk_without_room_for_compiled_kernels(tmp_path, python):
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100));"
        "from llama2np.kernels import CACHE_FOLDER, softmax; import numpy as np;"
        "x = np.ones(2, np.float32); softmax(x, np.float32(1), x); print(CACHE_FOLDER, x[0])"
    )
    child = python("-c", code, env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)})
    out, err = child.communicate(timeout=300)
    assert out.startswith(str(tmp_path)) and out.endswith(" 0.5\n") and not err


def test_a_user_without_a_home(tmp_path, monkeypatch):
    """expanduser then leaves "~" as it is, which would become a folder of that name."""
    monkeypatch.chdir(tmp_path)
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(cache_folder, "_package", lambda: tmp_path / "llama2np")
    assert cache_folder.cache_folder() is None
    assert os.listdir(tmp_path) == []


def test_no_readline(monkeypatch):
    monkeypatch.setitem(sys.modules, "readline", None)
    screen = Screen()
    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: f"{question}yes")
    assert screen.ask("well? ") == "well? yes"


@pytest.mark.parametrize("name", ("MADV_HUGEPAGE", "MADV_SEQUENTIAL"))
def test_a_system_without_advice(write, monkeypatch, name):
    """macOS has one of them, Windows none."""
    path = write("x.bin", Header(1, TINY, True))
    monkeypatch.delattr(f"mmap.{name}", raising=False)
    assert checkpoint.load(path)[0] == TINY
    case = valid("safetensors")[0]
    write_case(case, path.parent)
    assert safetensors.read(path.parent / "model.safetensors")


POORER = """
import mmap, multiprocessing, os, runpy, signal, sys
import numba.core.codegen, sentencepiece
for module, names in {
    mmap: "MADV_HUGEPAGE MADV_SEQUENTIAL MADV_WILLNEED MADV_RANDOM MADV_DONTNEED",
    os: "sched_getaffinity sched_setaffinity register_at_fork getuid geteuid nice sysconf uname",
    signal: "SIGPIPE SIGHUP SIGBUS SIGALRM SIGTSTP SIGWINCH setitimer",
}.items():
    for name in names.split():
        vars(module).pop(name, None)
for name in ("readline", "fcntl", "resource", "pwd", "termios", "tty"):
    sys.modules[name] = None
sys.argv[0] = "run.py"
runpy.run_module("llama2np", run_name="__main__", alter_sys=False)
"""


@pytest.mark.parametrize("words", ("run {} -i AB -t 0 -n 9", "export {}.out --bin {} --version -1"))
def test_a_system_that_is_not_linux(files, python, words):
    """What macOS or Windows have not is taken away before anything of ours is imported."""
    words = words.format(*[files / "model.bin"] * 2).split()
    out, err = (child := python("-c", POORER, *words)).communicate(timeout=300)
    assert child.returncode == 0 and "Traceback" not in err
    assert out.startswith("AB" if words[0] == "run" else "wrote")
