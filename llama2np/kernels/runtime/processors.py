"""How many processors this process may use: in a container, fewer than the machine has."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_GROUPS = Path("/proc/self/cgroup")  # a line for each hierarchy: its number, controllers, path
_ROOT = Path("/sys/fs/cgroup")


def processors() -> int:
    """Those that the scheduler may choose for it, if it may use them all the time.

    Linux's control groups limit the time: of half a processor, or of one and a half. Those count as
    one and two. Containers and CI runners are mostly limited in this way.
    """
    try:
        count = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on macOS and Windows
        count = os.cpu_count() or 1
    return min([count, *(max(math.ceil(quota), 1) for quota in _quotas())])


def _quotas() -> Iterator[float]:
    """The limits, in processors, of the control groups that the process is in."""
    try:
        lines = _GROUPS.read_text().splitlines()
    except (OSError, ValueError):  # another system
        return
    for number, names, path in (line.split(":", 2) for line in lines if line.count(":") > 1):
        if number == "0":  # version 2; beside version 1, it has a folder of its own
            roots = [_ROOT, _ROOT / "unified"]
        elif "cpu" in names.split(","):
            roots = [_ROOT / names, _ROOT / "cpu"]
        else:
            continue
        # In a container the path may be the one outside, and the root the container's own.
        inner = PurePosixPath(path.lstrip("/"))
        for folder in {root / part for root in roots for part in (inner, *inner.parents)}:
            if quota := _quota(folder):
                yield quota


def _quota(folder: Path) -> float | None:
    """Microseconds of processor time in each period, over its length; None where there is none."""
    try:
        if (limit := folder / "cpu.max").exists():
            quota, period = limit.read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 and int(period) > 0 else None
    except (OSError, ValueError):  # not there, or "max": no limit
        return None
