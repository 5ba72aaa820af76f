"""The decorator that every kernel wears, and the folder where its machine code is kept.

numba keys its disk cache by one source file and the CPU. It does not see an edit in another file, a
changed llvmlite, or two versions of a package with equal times and sizes. So the folder's name
is a hash of all of these: code that is not ours, as it is now, is never found.
"""

import hashlib
import os
import platform
import tempfile
from functools import partial
from pathlib import Path

import llvmlite
import numba
import numpy as np
from numba.core import event
from numba.core.registry import cpu_target

from llama2np.kernels.runtime.cache import Cache

__all__ = [
    "CACHE_FOLDER",
    "PLAIN",
    "SLICES",
    "counts",
    "cpu_has",
    "exact",
    "inner",
    "kernel",
    "on_first_compile",
]


_KERNELS_FOLDER = Path(__file__).parents[1]


def _fingerprint():
    digest = hashlib.sha256()
    for source in sorted(_KERNELS_FOLDER.rglob("*.py")):
        digest.update(source.read_bytes())
    versions = (platform.python_version(), np.__version__, numba.__version__, llvmlite.__version__)
    settings = os.environ.get("LLAMA2NP_INT8"), bool(numba.config.BOUNDSCHECK)
    digest.update(repr((*versions, *settings)).encode())
    return digest.hexdigest()[:16]


def _cache_folder():
    """The first of these that can be written: numba's own, beside the source, the user's cache."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    homes = [chosen] if chosen else [_KERNELS_FOLDER / "__pycache__", Path(user) / "llama2np"]
    for home in homes:
        if str(home).startswith("~"):  # there is no home: it would become a folder of that name
            continue
        folder = Path(home) / f"kernels-{_fingerprint()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return None  # nowhere to write: compile anew in each process


CACHE_FOLDER = _cache_folder()
# Only loops: what LLVM is asked for by name has neither an interpreter nor checks of indices.
PLAIN = bool(numba.config.DISABLE_JIT or numba.config.BOUNDSCHECK)
# Python itself, where slices save time. They clip, so they are not for checking indices.
SLICES = bool(numba.config.DISABLE_JIT)
_KERNELS = []  # all that _jit made


def _jit(function=None, **options):
    """numba.njit that keeps its code in CACHE_FOLDER and leaves the caller's numba as it was."""
    if function is None:
        return partial(_jit, **options)
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(CACHE_FOLDER or "")
    try:
        made = numba.njit(function, nogil=True, **options)
        if CACHE_FOLDER is not None and not numba.config.DISABLE_JIT:
            made._cache = Cache(function)
    finally:
        numba.config.CACHE_DIR = before
    _KERNELS.append(made)
    return made


# Sums may be reordered and multiply-adds fused; nan and inf keep their meaning.
kernel = partial(_jit, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"})

# Every operation as written: where the order of float32 additions is part of the answer. `False`
# has to be said: without it a function takes over the fastmath of whoever has it compiled first.
exact = partial(_jit, error_model="numpy", fastmath=False)

# The same, for kernels that only kernels call: without what Python and C would call them by, which
# takes a sixth of the time to compile. Python ends with a segmentation fault if it calls one.
inner = partial(exact, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def cpu_has(feature):
    """Whether numba compiles for a CPU with this feature of LLVM's, such as avx2."""
    return f"+{feature}" in cpu_target.target_context.codegen().magic_tuple()[2].split(",")


class _Once(event.Listener):
    def __init__(self, action):
        self.action = action

    def on_start(self, _event):
        action, self.action = self.action, None
        if action:
            action()

    def on_end(self, _event):
        pass


def on_first_compile(action):
    """Call `action()` once, when numba first has to compile something instead of loading it."""
    event.register("numba:compile", _Once(action))


def counts():
    """How many kernels this process has compiled, and how many it has loaded from the cache.

    A kernel counts once for each combination of its arguments' types.
    """
    stats = [made.stats for made in _KERNELS if hasattr(made, "stats")]  # not if jit is disabled
    compiled = sum(sum(each.cache_misses.values()) for each in stats)
    return compiled, sum(sum(each.cache_hits.values()) for each in stats)
