"""With NUMBA_BOUNDSCHECK=1, as in `make test-bounds`, an index out of range is an error.

It would prove nothing if code compiled without checks were found on the disk.
"""

import os
import runpy
import subprocess
import sys
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
from conftest import ROOT, TINY, random_tensors

from llama2np.formats.checkpoint import Header, save
from llama2np.kernels.ops import linear
from llama2np.kernels.runtime import jit

pytestmark = pytest.mark.compiled

READS = """
import sys
import numpy as np
from llama2np.formats import checkpoint
from llama2np.model.transformer import State, Transformer

found = []
for path in sys.argv[2:]:
    transformer = Transformer(*checkpoint.load(path))
    state, other = State(transformer.config), State(transformer.config)
    found.append(transformer.forward(range(25), state, all_logits=True))
    found.append(transformer.forward([3], state)[None])
    found.append(transformer.forward([5, 6, 7], state, all_logits=True))
    found.append(transformer.forward_rows([[1, 2], [7]], [other, state]))
    found.append(transformer.greedy(9, other, 3)[1])
np.save(sys.argv[1], np.concatenate(found))
"""
FAILS = """
import numpy as np
from llama2np import kernels
from llama2np.kernels.matmul.int8 import dequantize_row
from llama2np.kernels.ops import linear, rows
from llama2np.kernels.runtime.jit import CACHE_FOLDER, exact
from ops import Buffer, call, out

@exact
def dequantize(q, scales, out):
    dequantize_row(q, scales, out)

q, x = np.ones(8, np.int8), np.ones((2, 8), np.float32)
tokens, table, weight = np.array([3]), np.ones((4, 8), np.float32), np.ones(8, np.float32)
dequantize(q, np.ones(2, np.float32), np.zeros(8, np.float32))
for action in (
    lambda: dequantize(q, np.ones(2, np.float32), np.zeros(7, np.float32)),
    lambda: kernels.softmax(np.ones(9, np.float32), np.float32(1), x[0]),
    # A matrix more than a step has room for: an error in an op ends the call.
    lambda: call(linear.float_few("float32"), 2, n=8, units=5, work=1, x=Buffer(x),
                 count=5, w=4 * [table], d=4 * [1], out=4 * [out(2, 4)]),
):
    try:
        action()
        print("nothing")
    except IndexError as error:
        print(type(error).__name__)
print(linear.int8_many, CACHE_FOLDER)
"""


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """read(NAME=value) -> the logits of READS in a process; of FAILS, what it prints.

    Without settings, the process is this one.
    """
    folder = tmp_path_factory.mktemp("bounds")
    models = {"f.bin": Header(1, TINY, True), "q.bin": Header(2, TINY, False, 16)}
    for name, header in models.items():
        save(folder / name, header, random_tensors(header))

    def read(code=READS, **env):
        (folder / "code.py").write_text(code)  # numba keeps code of files alone
        words = [str(folder / name) for name in ("code.py", "logits.npy", *models)]
        if not env:
            with patch.object(sys, "argv", words):
                runpy.run_path(words[0])
            return np.split(np.load(folder / "logits.npy"), 2)
        command = [sys.executable, "-B", *words]
        env = os.environ | env | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout if code == FAILS else np.split(np.load(folder / "logits.npy"), 2)

    return read


@pytest.fixture(scope="module")
def checked(read):
    """With checks, which do not depend on how much LLVM optimizes; that takes long.

    With one thread there is no second process that compiles, too.
    """
    quick = {"NUMBA_OPT": "0", "NUMBA_NUM_THREADS": "1"}
    return partial(read, NUMBA_BOUNDSCHECK="1", LLAMA2NP_INT8="portable", **quick)


def test_indices_are_checked(checked):
    *errors, last = checked(FAILS).splitlines()
    assert errors == ["IndexError"] * 3
    tiles, folder = last.split()
    assert tiles == "None"  # vector loads have no index to check
    if not os.environ.get("NUMBA_BOUNDSCHECK") and os.environ.get("LLAMA2NP_INT8") != "portable":
        assert folder != str(jit.CACHE_FOLDER) and linear.int8_many is not None


def test_the_table_is_right_without_a_compiler(read):
    """In plain Python, float32 sums have another order, and exp may be rounded otherwise."""
    np.testing.assert_allclose(read(NUMBA_DISABLE_JIT="1"), read(), atol=2e-5)


@pytest.mark.exhaustive  # and all that `make test-bounds` runs
def test_the_table_is_right_with_checks(read, checked):
    (floats, ints), (checked_floats, checked_ints) = read(), checked()
    np.testing.assert_allclose(checked_floats, floats, atol=2e-5)
    np.testing.assert_array_equal(checked_ints, ints)
