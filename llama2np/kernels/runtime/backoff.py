"""The number of threads to use now: fewer on a busy machine, where sharing work costs time.

A shared step ends when its slowest thread ends. If other programs use the processors too, the
system preempts one of our threads every few milliseconds, for some milliseconds, and the others
wait. So after a long wait, half as many threads are used for some time; and also if the workers
computed almost nothing while other programs were running. Before the number increases again, the
load of the system is checked (on Linux): this costs almost nothing, a wait costs more. But the
other programs may have a low priority and not disturb us, so after half a second the number
increases in any case. The number is chosen before each call and again during a long one, such as a
prompt (pool.py). On an idle machine there are no such waits, and the load is read only once, before
the first call that could use several threads.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from llama2np.kernels.runtime.shared import UNHELPED

_FACTOR = 10  # the time with fewer threads is at least this multiple of the wait
_MOST = 0.5  # seconds: the longest such time; after it, more threads are tried at any load
_LITTLE_WAIT = 250_000  # nanoseconds: what UNHELPED counts for
_LOOK = 0.02  # seconds between two checks of the load, while the system is busy
_LOAD = Path("/proc/loadavg")  # "0.20 0.18 0.12 3/412 11206": 3 of 412 threads are runnable
_NEVER = float("inf")


class Backoff:
    """The present limit in this process. It needs no lock, since nothing has to be exact."""

    def __init__(self) -> None:
        # Times are seconds on the monotonic clock.
        self._limit = 1  # the maximum number of threads now
        self._until = time.monotonic()  # when the limit is checked again; _NEVER means no limit
        self._trial = self._until + _MOST  # from then on, the load is ignored
        self._pause = 0.0  # the planned duration of the limit after the last wait
        self._since = 0.0  # when the last limit ended
        self._given = 1  # the last result of `threads`

    def threads(self, count: int, own: int = 1) -> int:
        """The number of threads to use now, at most `count`; `own` threads of ours run now."""
        if count > 1 and self._until < _NEVER:
            count = min(count, self._limited(count, own))
        self._given = count
        return count

    def _limited(self, count: int, own: int) -> int:
        now = time.monotonic()
        if now < self._until:
            return self._limit
        free = free_processors(own) if now < self._trial else None
        if free is not None and free < count:
            self._limit, self._until = max(free, 1), now + _LOOK
        else:
            self._limit, self._until, self._since = count, _NEVER, now
        return self._limit

    def waited(self, nanoseconds: int) -> None:
        """Record that a kernel has waited this long for threads without a processor.

        UNHELPED: it has not waited, but the other threads computed almost nothing. This happens if
        they have no processor, and also for a moment after they are woken: so it is ignored if the
        system has processors for all of our threads.
        """
        if nanoseconds == UNHELPED:
            free = free_processors(own=self._given)
            if free is not None and free >= self._given:
                return
            nanoseconds = _LITTLE_WAIT
        now, wait = time.monotonic(), nanoseconds * 1e-9
        # If this wait began soon after the last limit ended, that was too short: now twice as long.
        again = now - wait - self._since < 2 * self._pause
        self._pause = min(max(_FACTOR * wait, 2 * self._pause * again), _MOST)
        self._limit, self._until = max(self._given // 2, 1), now + self._pause
        self._trial = now + _MOST


def free_processors(own: int = 1) -> int | None:
    """The number of processors that run none but our `own` threads; None if it is not known.

    It is not known if the process may use only some processors: the others may be the busy ones.
    """
    try:
        running = int(_LOAD.read_text().split()[3].split("/")[0])
        count = os.cpu_count() or 1
        return count - (running - own) if len(os.sched_getaffinity(0)) == count else None
    except (OSError, ValueError, IndexError, AttributeError):  # not Linux
        return None
