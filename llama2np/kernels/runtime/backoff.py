"""How many threads share work now: fewer on a busy machine, where sharing costs time.

A step that threads share ends with the slowest of them. Where other programs want the processors
too, the system stops one of them every few milliseconds, for as long, and the others wait. So after
a long wait half as many threads share work for some time. Before more of them try again, a look at
the system (on Linux) says whether there are processors for them: that costs nothing, a wait does.
But what runs may be of low priority, and never in the way; so after half a second they try anyway.
On a quiet machine there are no such waits, and after the first look there is no other.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_FACTOR = 10  # the time with fewer threads is at least so many times the wait
_MOST = 0.5  # seconds: the longest such time, and until threads try again whatever runs
_LOOK = 0.02  # seconds from one look at the system to the next, while it is busy
_LOAD = Path("/proc/loadavg")  # "0.20 0.18 0.12 3/412 11206": 3 of 412 threads run, or could
_NEVER = float("inf")


class Backoff:
    """What is known of it in this process. Threads may use it at once: nothing has to be exact."""

    def __init__(self) -> None:
        # Times are seconds on the monotonic clock.
        self._limit = 1  # the most threads now
        self._until = time.monotonic()  # when that is decided again; _NEVER: there is no limit
        self._trial = self._until + _MOST  # when a look does not decide any more
        self._pause = 0.0  # how long the limit after the last wait was meant to stay
        self._since = 0.0  # when there was no limit any more
        self._given = 1  # the last answer of `threads`

    def threads(self, count: int) -> int:
        """How many of `count` threads are to share work now."""
        if count > 1 and self._until < _NEVER:
            count = min(count, self._limited(count))
        self._given = count
        return count

    def _limited(self, count: int) -> int:
        now = time.monotonic()
        if now < self._until:
            return self._limit
        free = free_processors() if now < self._trial else None
        if free is not None and free < count:
            self._limit, self._until = max(free, 1), now + _LOOK
        else:
            self._limit, self._until, self._since = count, _NEVER, now
        return self._limit

    def waited(self, nanoseconds: int) -> None:
        """A kernel has waited so long for threads that had no processor."""
        now, wait = time.monotonic(), nanoseconds * 1e-9
        again = now - wait - self._since < 2 * self._pause
        self._pause = min(max(_FACTOR * wait, 2 * self._pause * again), _MOST)
        self._limit, self._until = max(self._given // 2, 1), now + self._pause
        self._trial = now + _MOST


def free_processors() -> int | None:
    """How many processors run no other thread than the caller; None where that is not known.

    It is not where the process may use only some processors: the others may be the busy ones.
    """
    try:
        running = int(_LOAD.read_text().split()[3].split("/")[0])
        count = os.cpu_count() or 1
        return count - (running - 1) if len(os.sched_getaffinity(0)) == count else None
    except (OSError, ValueError, IndexError, AttributeError):  # another system
        return None
