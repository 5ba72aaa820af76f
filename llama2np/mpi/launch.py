"""Whether a launcher of MPI has started this process: by the variables that it sets."""

from __future__ import annotations

import os

# The number of processes and the rank of this one: Open MPI (and its kin), MPICH and Intel MPI,
# MVAPICH, and srun.
_VARIABLES = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)
SWITCH = "LLAMA2NP_MPI"  # 1: use MPI, 0: do not, whatever the launcher


def launched() -> bool:
    """Whether this is one of several processes that share out their work over MPI."""
    switch = os.environ.get(SWITCH)
    if switch in ("0", "1"):
        return switch == "1"
    return size() > 1


def size() -> int:
    """The number of processes, by the launcher's variables; 1 without a launcher."""
    return max(_number(name, 1) for name, _ in _VARIABLES)


def rank() -> int:
    """The rank of this process, by the launcher's variables; 0 without a launcher."""
    return max(_number(name, 0) for _, name in _VARIABLES)


def loses_end_of_input() -> bool:
    """Whether the launcher may not pass on the end of its standard input: Open MPI 5's does not."""
    return size() > 1 and os.environ.get("PMIX_NAMESPACE", "").startswith("prterun")


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else default
