"""Processes of one machine wait for each other, by counters in memory that they share."""

from numba import int64

from llama2np.kernels.runtime.atomic import give_way, load, pause, store
from llama2np.kernels.runtime.jit import exact
from llama2np.kernels.runtime.link import LINKED

# int64 from one counter to the next: each is in a cache line of its own. mpi/near.py has the same
# number in bytes.
STRIDE = 8


@exact
def meet(counters, own, count, first, end, least, pauses, looks):
    """Set counter `own` to `count`; return whether counters first ... end - 1 are `least` or more.

    counters: their address. The first `pauses` looks keep the processor, the others yield it. After
    `looks` looks in vain it returns False, and can be called again.
    """
    store(counters, own * STRIDE, count)
    look = 0
    for other in range(first, end):
        while load(counters, other * STRIDE) < least:
            look += 1
            if look >= looks:
                return False
            if look < pauses:
                pause()
            else:
                give_way()
    return True


LINKED[meet] = (int64,) * 8
