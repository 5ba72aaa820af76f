"""One large model in several processes, on one machine or many, over MPI (the extra `[mpi]`).

    mpirun -n 4 llama2np run MODEL

Each process (rank) has a share of the model: see model/shares.py. Rank 0 runs the program of the
user, and tells the other ranks what to compute. In a script:

>>> from llama2np import mpi
>>> with mpi.load("model.gguf") as model:      # all ranks; the others compute until rank 0 leaves
...     if model is not None:                   # rank 0
...         print(model.generate("Once upon a time").text)

`load` imports mpi4py; nothing else in the package does. docs/scale.md says what it costs.

launch.py      whether a launcher of MPI has started this process
ranks.py       how the ranks load a model, and what they do for rank 0
peers.py       what they exchange, over MPI or by near.py
near.py        exchanges through shared memory, on one machine
affinity.py    which processors each rank uses
watch.py       a thread that says which rank does not answer
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llama2np.mpi.launch import launched, rank

if TYPE_CHECKING:
    from llama2np.llama import Llama

__all__ = ["launched", "load", "rank"]


@contextmanager
def load(
    path: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str] | None = None,
    engine: str = "compiled",
    adapter: str | os.PathLike[str] | None = None,
    *,
    threads: int | None = None,
    comm: Any = None,
) -> Iterator[Llama | None]:
    """A model that all processes of `comm` share out, for the block of a `with` statement.

    All of them must begin the block. Rank 0 gets a Llama. The others compute their shares here
    until rank 0 leaves the block, and then get None. The model has neither hooks nor `walk`, and
    its States cannot be saved. Its config describes the share of rank 0: it has fewer heads.

    path, tokenizer, engine, adapter: as for `Llama.load`; rank 0 says them. threads: of each
    process, by default an equal part of its processors. comm: a communicator of mpi4py, by default
    COMM_WORLD. Raises on rank 0 what `Llama.load` raises, and ValueError if mpi4py is missing, for
    a network that cannot be shared out, and if the processes have different files.
    """
    from llama2np.mpi.ranks import Ranks

    with Ranks(comm) as ranks:
        yield ranks.load(path, tokenizer, engine, adapter, threads) if not ranks.rank else None
