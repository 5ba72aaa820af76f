"""The background compiler: a second process that compiles, so that the first run starts sooner.

The kernels that a network needs are compiled separately (link.py, op.py). The main process compiles
them in the order of use; the background process begins with the last. Each loads from the cache
what the other has compiled, so neither waits, and the background process may fail.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import numba

from llama2np.kernels.runtime.link import LINKED, callees, never_run

_CODE = """\
import sys
sys.path[:] = {path!r}
from llama2np.kernels import lower
from llama2np.kernels.runtime import compiler
lower.make_all_ops()
compiler.compile_all({names})
"""


class _Background:
    def __init__(self) -> None:
        self.expected: list[Any] = []  # kernels, in the order in which they will be called
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process: if one kernel is missing, probably all expected ones are."""
        if len(self.expected) < 2 or self.process or numba.config.NUMBA_NUM_THREADS < 2:
            return
        if "python" not in os.path.basename(sys.executable or "").lower():
            return  # Python is embedded in another program, which would be started again
        names = [_name(kernel) for kernel in self.expected]
        streams: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        code = _CODE.format(path=sys.path, names=names)
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        command = [sys.executable, *flags, "-c", code]
        with suppress(Exception):  # it is optional, so an error at its start does not matter
            self.process = subprocess.Popen(command, **streams)
            atexit.register(self.stop)

    def stop(self) -> None:
        """End the process: the main process has compiled the rest."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None
            atexit.unregister(self.stop)


_background = _Background()


def expect(kernels: Iterable[Any]) -> None:
    """Announce kernels of LINKED that will be called soon, in this order.

    This has no effect for kernels that are compiled or loaded already.
    """
    if not numba.config.DISABLE_JIT:
        for kernel in kernels:
            if not kernel.signatures and kernel not in _background.expected:
                _background.expected.append(kernel)


def missing() -> None:
    """Record a cache miss."""
    _background.start()


def found(function: Callable[..., Any]) -> None:
    """Record that a kernel has been loaded or compiled."""
    left = [kernel for kernel in _background.expected if kernel.py_func is not function]
    if _background.expected and not left:
        _background.stop()
    _background.expected = left


def compile_all(names: list[str]) -> None:
    """In the background process: compile the kernels of LINKED with these names, the last first."""
    never_run()
    known = {_name(kernel): kernel for kernel in LINKED}
    for name in reversed(names):
        kernel = known[name]
        for each in (*_called_by(kernel), kernel):
            each.compile(LINKED[each])


def _name(kernel: Any) -> str:
    """The name of a kernel, the same in every process."""
    return f"{kernel.py_func.__module__}.{kernel.py_func.__qualname__}"


def _called_by(kernel: Any) -> Iterator[Any]:
    """The kernels that this one calls by address, each after those that it calls itself."""
    for call in callees(kernel.py_func):
        yield from _called_by(call.kernel)
        yield call.kernel
