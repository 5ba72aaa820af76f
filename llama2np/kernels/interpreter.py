"""The interpreter: executes a table of steps, alone or together with the workers of the pool.

engine.py makes the table. It consists of records (runtime/op.py): the address of an op, the units
into which its work can be divided, and its arguments. Here and in runtime/, "step" means such a
record. A step of a Program becomes one or more of them (lower.py): attention, for example, becomes
`append` and `attend`. The interpreter is compiled once and runs any network; each op is compiled
separately, when a network first needs it.
"""

import numpy as np
from numba import float32, int64

from llama2np.kernels.runtime.jit import exact
from llama2np.kernels.runtime.link import LINKED
from llama2np.kernels.runtime.memory import array_at
from llama2np.kernels.runtime.op import HEADER, STEP_BYTES, row_count, run_at
from llama2np.kernels.runtime.shared import begin_call, call_op, end_call, share, shares

_STEP = np.dtype(HEADER, align=True)


@exact
def go(board, members, scratch, table, steps, run, tokens, logits, wanted, laps, seen):
    """Compute `steps` steps of the table at this address, `laps` times.

    board, members, scratch: from the pool. run: the address of a RUN. The next three arguments are
    copied into it here, because that is faster than in Python: tokens (laps * rows,), logits
    (laps * wanted, vocab_size), wanted. In each further lap, the first step reads the most probable
    token of the previous lap. seen: the sum over all rows of the positions that a row attends to,
    roughly; it only decides which steps are shared.
    """
    r = run_at(run)
    r["tokens"], r["logits"], r["wanted"] = tokens.ctypes.data, logits.ctypes.data, wanted
    if members > 1:
        begin_call(board, members)
    for lap in range(laps):
        r["lap"] = lap
        row = table
        for _ in range(steps):
            step = array_at(row, (1,), _STEP)[0]
            rows = row_count(step["picked"], r)
            units = step["units"] if step["units"] else -(-rows // step["each"])
            work = step["work"] * rows + step["seen_work"] * (seen + lap * rows)
            if members > 1 and shares(board, units, work):
                share(board, step["op"], row, run, units, work, scratch)
            elif units:
                call_op(step["op"], row, run, 0, units, scratch)
            row += STEP_BYTES
    if members > 1:
        end_call(board)


LINKED[go] = (*(int64,) * 6, int64[::1], float32[:, ::1], *(int64,) * 3)
