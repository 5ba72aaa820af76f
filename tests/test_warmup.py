"""Warming up: afterwards nothing is left to compile, for any model."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY

from llama2np.cli import main
from llama2np.formats.checkpoint import Header
from llama2np.kernels.runtime.cache import identity

# Prints "compiles" once something has to be compiled, and then proves that it would have.
GENERATES = """
import sys
import numpy as np
from llama2np import kernels
from llama2np.formats import checkpoint
from llama2np.decoding.generation import continue_tokens
from llama2np.decoding.sampler import Sampler
from llama2np.model.transformer import State, Transformer

kernels.on_first_compile(lambda: print("compiles", flush=True))
for path in sys.argv[1:]:
    transformer = Transformer(*checkpoint.load(path))
    for sampler in (Sampler(0), Sampler(0.9, 0.9, seed=3), Sampler(1.0, 1.0, seed=3)):
        for count in (1, 2, 17, 65, 90):
            state = State(transformer.config)
            for _ in continue_tokens(transformer, state, [5] * count, sampler, count + 5):
                pass
    transformer.forward([5] * 40, State(transformer.config), all_logits=True)
print("generated", kernels.counts()[0], flush=True)
kernels.softmax(np.zeros(1), 1.0, np.zeros(1))  # of other types than ever before
"""


def python(*argv, cache):
    return subprocess.run(
        [sys.executable, *map(str, argv)],
        cwd=ROOT,
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def numbers(said):
    """Kernels compiled, kernels kept, and the folder, as `warmup` says them."""
    form = r"(\d+) kernels compiled in \d+\.\d s, (\d+) kept in (.+)\n"
    compiled, kept, folder = re.fullmatch(form, said).groups()
    return int(compiled), int(kept), Path(folder)


@pytest.mark.compiled
def test_it_says_what_it_did(warm):
    cache, said = warm
    compiled, kept, folder = numbers(said)
    assert compiled == kept > 20
    assert folder.parent == cache and list(folder.rglob("*.nbc"))


@pytest.mark.compiled
def test_a_second_time_there_is_nothing_to_compile(warm):
    cache, said = warm
    done = python("-m", "llama2np", "warmup", cache=cache)
    assert numbers(done.stdout) == (0, *numbers(said)[1:])


@pytest.mark.compiled
def test_generation_compiles_nothing_afterwards(cold, write):
    models = [
        write("0.bin", Header(0, TINY, True)),
        write("1.bin", Header(1, TINY, False)),
        *(write(f"2-{group}.bin", Header(2, TINY, True, group)) for group in (4, 8, 16)),
    ]
    done = python("-c", GENERATES, *models, cache=cold())  # a copy: it adds a kernel
    assert done.stderr == ""
    assert done.stdout == "generated 0\ncompiles\n"


def test_nowhere_to_keep_it(monkeypatch, capfd):
    monkeypatch.setattr("llama2np.kernels.CACHE_FOLDER", None)
    assert main(["warmup"]) == 1
    assert capfd.readouterr().err == (
        "llama2np warmup: no folder for compiled code can be written: name one in NUMBA_CACHE_DIR\n"
    )


def test_a_flag_it_does_not_have(capfd):
    assert main(["warmup", "--fast"]) == 1
    assert capfd.readouterr().err.count("\n") == 1


def closing_over(value):
    def function():
        return value

    return function


def test_closures_are_told_apart_by_what_they_hold():
    held = [1, 2, "1x", (1, 2), closing_over(1), closing_over(2), (closing_over(1), 2)]
    assert len({repr(identity(closing_over(value))) for value in held}) == len(held)
    for value in held:
        assert identity(closing_over(value)) == identity(closing_over(value))
