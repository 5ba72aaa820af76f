"""The number of processors that this process may use: in a container fewer than the machine has."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_GROUPS = Path("/proc/self/cgroup")  # a line for each hierarchy: its number, controllers, path
_ROOT = Path("/sys/fs/cgroup")


def processors() -> int:
    """The processors in this process's affinity mask, limited by quotas of processor time.

    Linux's control groups can limit the time, for example to half a processor, or to one and a
    half, which count as one and two. Most containers and CI runners are limited in this way.
    """
    try:
        count = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on macOS and Windows
        count = os.cpu_count() or 1
    return min([count, *(max(math.ceil(quota), 1) for quota in _quotas())])


def _quotas() -> Iterator[float]:
    """The limits of the process's control groups, in processors."""
    try:
        lines = _GROUPS.read_text().splitlines()
    except (OSError, ValueError):  # another system
        return
    for number, names, path in (line.split(":", 2) for line in lines if line.count(":") > 1):
        if number == "0":  # version 2; if version 1 is in use as well, it has a separate folder
            roots = [_ROOT, _ROOT / "unified"]
        elif "cpu" in names.split(","):
            roots = [_ROOT / names, _ROOT / "cpu"]
        else:
            continue
        # In a container this path may be that of the host, while the root is the container's.
        inner = PurePosixPath(path.lstrip("/"))
        for folder in {root / part for root in roots for part in (inner, *inner.parents)}:
            if quota := _quota(folder):
                yield quota


def _quota(folder: Path) -> float | None:
    """Processor time in each period, divided by its length; None if there is no limit."""
    try:
        if (limit := folder / "cpu.max").exists():
            quota, period = limit.read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 and int(period) > 0 else None
    except (OSError, ValueError):  # there is no such file, or it has "max", which means no limit
        return None
