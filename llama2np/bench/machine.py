"""The limits of the machine: read bandwidth for generation, and multiplication for prompts.

Both are measured with the number of threads that the model uses.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import numpy as np

from llama2np.kernels import row_sums

_READ_BYTES = 2**29  # larger than the caches
# Each library that NumPy may use for matrix products obeys one of these.
_THREAD_SETTINGS = (
    "OMP_NUM_THREADS OPENBLAS_NUM_THREADS MKL_NUM_THREADS BLIS_NUM_THREADS VECLIB_MAXIMUM_THREADS"
).split()


class Memory:
    """An array that the threads of the kernels read repeatedly."""

    def __init__(self, size: int = _READ_BYTES):
        self._rows = np.ones((1024, size // 4096), np.float32)  # 1024 rows for threads to share
        self._sums = np.zeros(len(self._rows), np.float32)
        row_sums(self._rows[:2], self._sums)  # compiles

    def read_speed(self, repeats: int = 7) -> float:
        """Bytes per second: the median, because it is compared with means over many tokens."""
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            row_sums(self._rows, self._sums)
            seconds.append(time.perf_counter() - start)
        return self._rows.nbytes / median(seconds)


def sgemm_speed(threads: int) -> float:
    """Floating point operations per second of NumPy's matrix product in float32.

    It is measured in a separate process: there the number of NumPy's threads can be set, and the
    threads end with it instead of spinning on our processors. Raises OSError.
    """
    # The place of `llama2np`: installed, beside a script, or in a zip archive.
    places = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    settings = dict.fromkeys(_THREAD_SETTINGS, str(threads))
    done = subprocess.run(
        [sys.executable, "-m", "llama2np.bench.sgemm"],
        env={**os.environ, **settings, "PYTHONPATH": os.pathsep.join(filter(None, places))},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise OSError(f"NumPy's matrix product could not be measured: {done.stderr[-200:]}")
    return float(done.stdout)


def description() -> dict[str, str]:
    """The processor, and the versions that affect the speed."""
    packages = {}
    for name in ("llama2np", "numpy", "numba", "llvmlite"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:  # it runs from its folder, without installation
            from llama2np import __version__

            packages[name] = __version__
    return {
        "processor": _processor(),
        "processors": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **packages,
    }


def _processor() -> str:
    """Its name from Linux; on other systems from Python."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
