"""A background process that compiles too, so that the first run of all starts sooner.

The kernels that a network needs are compiled separately (link.py, op.py). The main process compiles
them in the order of use; the background process begins with the last. Each finds in the cache what
the other has finished, so neither waits, and if the background process fails, nothing is missing.
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
        """Start the process: a kernel is missing, so probably all expected ones are."""
        if len(self.expected) < 2 or self.process or numba.config.NUMBA_NUM_THREADS < 2:
            return
        if "python" not in os.path.basename(sys.executable or "").lower():
            return  # a program with Python embedded: it would be started a second time
        names = [_name(kernel) for kernel in self.expected]
        streams: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        code = _CODE.format(path=sys.path, names=names)
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        command = [sys.executable, *flags, "-c", code]
        with suppress(Exception):  # whatever keeps it from starting, it is not needed
            self.process = subprocess.Popen(command, **streams)
            atexit.register(self.stop)

    def stop(self) -> None:
        """End the process: this one has compiled what it still compiles."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None
            atexit.unregister(self.stop)


_background = _Background()


def expect(kernels: Iterable[Any]) -> None:
    """Announce kernels of LINKED that will be called soon, in this order.

    Has no effect on those that are compiled or loaded already.
    """
    if not numba.config.DISABLE_JIT:
        for kernel in kernels:
            if not kernel.signatures and kernel not in _background.expected:
                _background.expected.append(kernel)


def missing() -> None:
    """Note that a kernel is not in the cache."""
    _background.start()


def found(function: Callable[..., Any]) -> None:
    """Note that a kernel was loaded or compiled."""
    left = [kernel for kernel in _background.expected if kernel.py_func is not function]
    if _background.expected and not left:
        _background.stop()
    _background.expected = left


def compile_all(names: list[str]) -> None:
    """The background process's work: the kernels of LINKED with these names, the last first."""
    never_run()
    known = {_name(kernel): kernel for kernel in LINKED}
    for name in reversed(names):
        kernel = known[name]
        for each in (*_called_by(kernel), kernel):
            each.compile(LINKED[each])


def _name(kernel: Any) -> str:
    """What a kernel is called in every process."""
    return f"{kernel.py_func.__module__}.{kernel.py_func.__qualname__}"


def _called_by(kernel: Any) -> Iterator[Any]:
    """The kernels that this one calls by address, each after those that it calls itself."""
    for call in callees(kernel.py_func):
        yield from _called_by(call.kernel)
        yield call.kernel
