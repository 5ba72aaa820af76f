"""The decorators of kernels."""

import gc
from functools import partial

import numba
from numba.core import event
from numba.core.registry import cpu_target

from llama2np.kernels.runtime.cache import Cache, closure_hash
from llama2np.kernels.runtime.cache_folder import cache_folder
from llama2np.kernels.runtime.inlined import InlinedCompiler

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
    "separate",
]


CACHE_FOLDER = cache_folder()  # None means that every process compiles for itself
# Plain loops only: LLVM functions called by name cannot be interpreted, and do not check indices.
PLAIN = bool(numba.config.DISABLE_JIT or numba.config.BOUNDSCHECK)
# Without numba's compiler, slices save time. They clip, so they do not check indices.
SLICES = bool(numba.config.DISABLE_JIT)
_KERNELS = []  # all kernels that have machine code of their own


def _jit(function=None, **options):
    """numba.njit with the disk cache in CACHE_FOLDER."""
    if function is None:
        return partial(_jit, **options)
    if function.__closure__:
        function.__qualname__ += f"_{closure_hash(function)}"
    made = numba.njit(function, nogil=True, **options)
    if options.get("pipeline_class") is not InlinedCompiler:
        if CACHE_FOLDER is not None and not numba.config.DISABLE_JIT:
            by_address = "no_cpython_wrapper" in options
            made._cache = Cache(function, CACHE_FOLDER, by_address)
        _KERNELS.append(made)
    return made


# Sums may be reordered and multiply-adds fused; nan and inf keep their meaning.
kernel = partial(_jit, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"})

# Every operation as written, for results that depend on the order of float32 additions.
# fastmath=False must be explicit: otherwise a function inherits it from the caller that first
# triggers its compilation.
exact = partial(_jit, error_model="numpy", fastmath=False)

# The same, for kernels that are called by address (link.py, op.py): without the wrappers for Python
# and C, which take a sixth of the time to compile. A call from Python is a segmentation fault.
separate = partial(exact, no_cpython_wrapper=True, no_cfunc_wrapper=True)

# The same, for kernels that become parts of the kernels that call them: without machine code.
inner = partial(separate, pipeline_class=InlinedCompiler)


def target():
    """The kind of CPU that numba compiles for: (its triple, its name, its features)."""
    return cpu_target.target_context.codegen().magic_tuple()


def cpu_has(feature):
    """Whether numba compiles for a CPU with this feature, by LLVM's name, such as avx2."""
    return f"+{feature}" in target()[2].split(",")


class _WithoutCollection(event.Listener):
    """While a kernel of ours is compiled, Python does not look for garbage in cycles.

    Compiling makes many objects that live on, and looking through them takes a tenth of the time.
    """

    depth, paused = 0, False  # numba's compiler lock guards them

    def on_start(self, started):
        if self.depth == 0 and started.data["dispatcher"] in _KERNELS:
            self.paused = gc.isenabled()
            gc.disable()
        self.depth += 1

    def on_end(self, _ended):
        self.depth -= 1
        if self.depth == 0 and self.paused:
            self.paused = False
            gc.enable()


event.register("numba:compile", _WithoutCollection())


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
    """Call `action()` once, when numba first compiles a kernel instead of loading it."""
    event.register("numba:compile", _Once(action))


def counts():
    """The number of kernels that this process has compiled, and that it has loaded from the cache.

    A kernel counts once for each combination of argument types.
    """
    caches = [made._cache for made in _KERNELS if hasattr(made, "_cache")]
    stats = [made.stats for made in _KERNELS if hasattr(made, "stats")]  # false if jit is disabled
    compiled = sum(sum(each.cache_misses.values()) for each in stats)
    loaded = sum(sum(each.cache_hits.values()) for each in stats)
    return compiled, loaded + sum(len(getattr(each, "addresses", ())) for each in caches)
