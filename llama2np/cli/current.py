"""The processes that this command shares its model with, if mpirun has started it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama2np.mpi.ranks import Ranks

ranks: Ranks | None = None
