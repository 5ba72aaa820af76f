"""A command under mpirun: rank 0 runs it, the other ranks compute their shares of its model."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from llama2np.cli import current
from llama2np.cli.flags import reported
from llama2np.mpi import launch

_FOR_RANK_0 = 3  # seconds
# The commands whose model can be shared out: they only read tokens and get logits.
_COMMANDS = "run", "chat", "serve", "generate", "perplexity"


def on_ranks(name: str, prog: str, command: Callable[[], int]) -> int:
    """Run a command on rank 0; return the exit status, which is 0 on the other ranks."""
    if name in _COMMANDS:
        return _reported(prog, lambda: _together(command))
    others = f"only {', '.join(_COMMANDS)} share out a model among processes"
    return _reported(prog, lambda: _refuse(f"{others}: start this command without mpirun"))


def _refuse(reason: str) -> int:
    raise ValueError(reason)


def _reported(prog: str, command: Callable[[], int]) -> int:
    """Of an error before the ranks know each other, only rank 0 says something."""
    if launch.rank() == 0:
        return reported(prog, command)
    # Ctrl-C reaches all processes, but what it ends is decided by rank 0.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return command()
    except ValueError:
        # mpirun kills the others when the first rank fails: rank 0 needs time for its line.
        time.sleep(_FOR_RANK_0)
        return 1


def _together(command: Callable[[], int]) -> int:
    from llama2np.mpi.ranks import Ranks

    with Ranks() as ranks:
        if ranks.rank:
            return 0
        current.ranks = ranks
        return command()
