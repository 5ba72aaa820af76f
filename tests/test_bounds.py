"""With NUMBA_BOUNDSCHECK=1, as in `make test-bounds`, an index out of range is an error.

It would prove nothing if code compiled without checks were found on the disk.
"""

import os

import pytest

from llama2np import kernels
from llama2np.kernels import jit

CODE = """
import numpy as np
from llama2np import kernels
from llama2np.kernels import jit
q, scales, out = np.ones((4, 8), np.int8), np.ones((4, 2), np.float32), np.zeros((1, 8), np.float32)
kernels.dequantize_rows(q, scales, np.array([3]), out)
for action in (
    lambda: kernels.dequantize_rows(q, scales, np.array([4]), out),
    lambda: kernels.matmul(np.ones((4096, 8), np.float32), np.ones((1, 8), np.float32), out, 2),
    lambda: kernels.softmax(np.ones(9, np.float32), np.float32(1), out[0]),
):
    try:
        action()
        print("nothing")
    except (IndexError, SystemError) as error:  # SystemError: from within a parallel region
        print(type(error if type(error) is IndexError else error.__cause__).__name__)
print(kernels.matmul_tiles, jit.CACHE_FOLDER)
"""


@pytest.mark.compiled
def test_indices_are_checked(python):
    env = os.environ | {"NUMBA_BOUNDSCHECK": "1", "LLAMA2NP_INT8": "portable"}
    out, err = python("-c", CODE, env=env).communicate(timeout=300)
    *errors, last = out.splitlines()
    assert errors == ["IndexError"] * 3, err
    tiles, folder = last.split()
    assert tiles == "None"  # vector loads have no index to check
    if not os.environ.get("NUMBA_BOUNDSCHECK") and os.environ.get("LLAMA2NP_INT8") != "portable":
        assert folder != str(jit.CACHE_FOLDER) and kernels.matmul_tiles is not None
