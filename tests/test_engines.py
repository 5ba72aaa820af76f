"""The command line and the library with either engine; the NumPy engine needs no numba."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from llama2np import Llama, kernels
from llama2np.cli import main
from llama2np.decoding import drawing

RUN = ["-t", "0.8", "-s", "42", "-n", "40"]


def test_both_engines_tell_the_same_story(capfd):
    told = []
    for engine in ("compiled", "numpy"):
        assert main(["run", "stories-box", *RUN, "--engine", engine]) == 0
        told.append(capfd.readouterr().out)
    assert told[0] == told[1] and told[0].startswith("Once upon a time")


@pytest.mark.parametrize(
    "command", (["run", *RUN], ["lens", "-i", "The dog"], ["inspect", "--steps"])
)
def test_the_numpy_engine_runs_where_numba_cannot_be_imported(command):
    code = (
        "import sys; sys.modules['numba'] = None; from llama2np.cli import main;"
        f"sys.exit(main([{command[0]!r}, 'stories-box', *{command[1:]!r}, '--engine', 'numpy']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_without_numba_the_compiled_engine_is_refused_with_the_way_out():
    code = (
        "import sys; sys.modules['numba'] = None; from llama2np.cli import main;"
        "sys.exit(main(['run', 'stories-box', '-n', '3']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "--engine numpy" in done.stderr


@pytest.mark.parametrize(
    "flags, words",
    (
        (["--engine", "numpi"], "expected compiled or numpy, numpy?"),
        (["--engine", "numpy", "--threads", "2"], "--threads --engine compiled"),
    ),
)
def test_flags_that_do_not_fit(flags, words, capfd):
    assert main(["run", "stories-box", *flags]) == 1
    err = capfd.readouterr().err
    assert all(word in err for word in words.split()) and len(err.splitlines()) == 1


def test_an_unknown_engine_is_refused():
    with pytest.raises(ValueError, match="engine must be a function of a Program, or a"):
        Llama.load("stories-box", engine=5)
    assert Llama.load("stories-box", engine=None).transformer._engine_name == "compiled"
    with pytest.raises(ValueError, match="engine must be 'compiled' or 'numpy', not 'cuda'"):
        Llama.load("stories-box", engine="cuda")


def test_inspect_shows_the_steps(capfd):
    assert main(["inspect", "--steps", "stories-box"]) == 0
    head, first, *_, total = capfd.readouterr().out.splitlines()
    for column in ("step", "layer", "reads", "weights", "makes", "bytes", "multiply-adds", "µs"):
        assert column in head
    assert first.split()[:3] == ["0", "embed", "embedding"] and "989,184" in total
    assert main(["inspect", "--steps", "stories-box", "--against", "stories-box"]) == 1


@pytest.mark.compiled
@pytest.mark.parametrize("top_p", (0.0, 1e-3, 0.5, 0.9, 0.99, 1.0))
@pytest.mark.parametrize("n", (1, 2, 7, 1000))
def test_numpy_draws_the_compiled_kernel_s_tokens(n, top_p):
    random = np.random.default_rng(n)
    room, heap = np.zeros((2, n), np.float32), np.zeros(n, np.int64)
    for coin in (*random.random(30, np.float32), np.float32(0), np.float32(1 - 2**-24)):
        logits = random.standard_normal(n, np.float32) * 3
        logits[random.random(n) < 0.2] = logits[0]  # equal ones
        options = np.float32(0.7), np.float32(top_p), np.float32(coin)
        fast = kernels.sample(logits, *options, room[0], heap)
        assert drawing.sample(logits, *options, room[1], heap) == fast


def test_numpy_refuses_logits_that_are_not_finite():
    logits, room, heap = np.full(5, np.nan, np.float32), np.zeros(5, np.float32), np.zeros(5, int)
    options = np.float32(1), np.float32(0.9), np.float32(0.5)
    assert drawing.sample(logits, *options, room, heap) == -1
