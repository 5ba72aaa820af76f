"""How long two or more ranks take for an exchange of float32 values by MPI: of that many for each.

    mpirun -n 2 python -m benchmarks.exchanges            (benchmarks/two_machines.sh: over TCP)

docs/scale.md compares it with the model. Ranks of one machine exchange through shared memory of
their own (mpi/near.py), which takes 4 to 10 microseconds.
"""

import time

import numpy as np

from llama2np.mpi.ranks import mpi4py

COUNTS = 1, 768, 2048, 8192, 32768, 262144


def main() -> None:
    """Print a line for each size, on rank 0."""
    comm = mpi4py().COMM_WORLD.Dup()
    for count in COUNTS:
        part, whole = np.ones(count, np.float32), np.empty((comm.size, count), np.float32)
        taken = []
        for _ in range(300 if count < 2**15 else 60):
            comm.Barrier()
            start = time.perf_counter()
            comm.Allgather(part, whole)
            taken.append(time.perf_counter() - start)
        if not comm.rank:
            low, middle = np.quantile(taken, (0.1, 0.5)) * 1e6
            print(f"{count:7,} values: {middle:6,.0f} us (fastest tenth {low:,.0f})", flush=True)


if __name__ == "__main__":
    main()
