"""The scripts beside the package, run from a bare shell: by links of any name, without NumPy."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import pairs

from llama2np import cli
from llama2np.__main__ import main

ROOT = Path(__file__).parents[1]
SCRIPTS = ("run.py", "runq.py", "export.py")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="links, and a Python without NumPy")


@pytest.fixture
def checkout(tmp_path):
    """A copy of the scripts, whose .venv has a Python that says how it was called."""
    root = tmp_path / "check out"
    (root / ".venv" / "bin").mkdir(parents=True)
    for name in (*SCRIPTS, "bootstrap.py"):
        shutil.copy(ROOT / name, root)
    python = root / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    python.chmod(0o755)
    return root


def bare(script, *words, cwd, flags=("-S",)):
    """Run a script with a Python that finds no NumPy: -S leaves its packages out."""
    command = [sys.executable, *flags, str(script), *words]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


NAMES = ("llama", "tell me", "x.py", "run.py", "numpy")


@pytest.mark.parametrize("link", pairs(SCRIPTS, NAMES), ids="-".join)
def test_a_link_of_any_name(checkout, tmp_path, link):
    script, name = link
    link, relative = tmp_path / name, tmp_path / f"{name}-2"
    link.symlink_to(checkout / script)
    relative.symlink_to(name)  # a link to a link, not from the root on
    for called in (link, Path(name), relative, checkout / script):
        done = bare(called, "-t", "a b", cwd=tmp_path)
        assert done.stdout == f"{checkout / script}|-t|a b|", done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_with_a_python_that_leaves_out_the_folder_of_the_script(checkout, tmp_path, script):
    """As `python -P` and PYTHONSAFEPATH do, too, since Python 3.11."""
    done = bare(checkout / script, "-n", "3", cwd=tmp_path, flags=("-S", "-I"))
    assert done.stdout == f"{checkout / script}|-n|3|", done.stderr


def test_without_a_venv_it_is_named_as_it_was_called(checkout, tmp_path):
    shutil.rmtree(checkout / ".venv")
    (tmp_path / "llama").symlink_to(checkout / "run.py")
    done = bare("llama", cwd=tmp_path)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == (
        f"llama: numpy and numba are not installed: run `make setup` in {checkout} first\n"
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_link_with_everything_installed(tmp_path, script):
    (tmp_path / "llama").symlink_to(ROOT / script)
    command = [sys.executable, "llama", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {script}")


def test_ctrl_c_before_the_command_has_started(monkeypatch):
    """While Python imports, it would print a traceback of twenty lines."""
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(cli, "main", lambda: signal.getsignal(signal.SIGINT))
    try:
        assert main() == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)
