"""Which processors each rank of a machine uses."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress


def allowed() -> list[int]:
    """The numbers of the processors that this thread may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))  # macOS and Windows


def part_of(everyone: Sequence[Sequence[int]], rank: int) -> list[int]:
    """The processors of one rank, where everyone[i] are those that rank i of a machine may use.

    Ranks that may use the same ones divide them, if there are enough.
    """
    own = list(everyone[rank])
    sharing = [i for i, others in enumerate(everyone) if not set(own).isdisjoint(others)]
    if len(sharing) > len(own) or any(list(everyone[i]) != own for i in sharing):
        return own
    at = sharing.index(rank)
    return own[len(own) * at // len(sharing) : len(own) * (at + 1) // len(sharing)]


def crowded(everyone: Sequence[Sequence[int]]) -> bool:
    """Whether the ranks of a machine are more than their processors."""
    return len(everyone) > len(set().union(*everyone))


def keep_to(part: Sequence[int]) -> Callable[[], None]:
    """Let this thread use only these processors; return a function that ends this.

    Two ranks that wait for each other by turns look like busy programs to Linux. It may keep both
    on one processor for seconds, while another one has nothing to do.
    """
    if not hasattr(os, "sched_setaffinity"):
        return lambda: None
    before = allowed()
    with suppress(OSError):  # the system may refuse
        os.sched_setaffinity(0, part)

    def end() -> None:
        with suppress(OSError):
            os.sched_setaffinity(0, before)

    return end
