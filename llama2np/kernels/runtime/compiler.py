"""Compile kernels in two processes, so that the first run starts sooner.

The kernels that a network needs are compiled separately (link.py, op.py). The numbers of those that
are not in the cache yet are written into a pipe. Two processes take them from there, one at a time:
this one and a second one, which stores what it has compiled in the cache. From there, this process
loads it. What the second one does not deliver is compiled here when it is called, so it may fail.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import numba

from llama2np.kernels.runtime.link import LINKED, callees, never_run

_FEW = 3  # kernels to compile: for fewer, a second process is not worth its start
_PATIENCE = 20.0  # seconds to wait for the last kernel of the second process
_NUMBER = 2  # bytes of a kernel's number in the pipe

_CODE = """\
import sys
sys.path[:] = {path!r}
from llama2np.kernels import lower
from llama2np.kernels.runtime import compiler
lower.make_all_ops()
compiler.work_for_another_process({names})
"""

_busy = threading.Lock()


def prepare(kernels: Iterable[Any]) -> None:
    """Compile these kernels of LINKED, unless they are in the cache, together with a process.

    This has no effect if there is only one processor, no cache, or little to compile.
    """
    if numba.config.NUMBA_NUM_THREADS < 2:
        return
    if not _busy.acquire(blocking=False):
        return  # another thread does this now
    try:
        left = missing(kernels)
        if len(left) >= _FEW:
            _compile_in_two_processes(left)
    finally:
        _busy.release()


def missing(kernels: Iterable[Any]) -> list[Any]:
    """The kernels to compile: first those that others call by address, last their callers.

    Those that are called are large, and should be there when a caller is compiled.
    """
    if numba.config.DISABLE_JIT:
        return []
    calls = {kernel: list(_called_by(kernel)) for kernel in kernels}
    called = dict.fromkeys(each for several in calls.values() for each in several)
    return [
        kernel
        for kernel in [*called, *sorted(calls, key=lambda kernel: len(calls[kernel]))]
        if not kernel.signatures and not _is_cached(kernel, LINKED[kernel])
    ]


def _is_cached(kernel: Any, kinds: Any) -> bool:
    """Whether the cache has the kernel. Without a cache, a second process cannot help: yes."""
    has = getattr(kernel._cache, "has", None)
    return has is None or has(kinds)


def _compile_in_two_processes(kernels: list[Any]) -> None:
    queue, entrance = os.pipe()
    try:
        with open(entrance, "wb") as file:
            file.write(b"".join(i.to_bytes(_NUMBER, "big") for i in range(len(kernels))))
        process = _second_process(kernels, queue)
        if process is None:
            return  # each kernel is compiled when it is called
        try:
            if _take(queue, kernels) < len(kernels):
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_PATIENCE)
        finally:
            process.kill()
            process.wait()
    finally:
        os.close(queue)


def _take(queue: int, kernels: list[Any]) -> int:
    """Compile kernels whose numbers are in the queue, until it is empty; return how many."""
    count = 0
    while number := os.read(queue, _NUMBER):
        kernel = kernels[int.from_bytes(number, "big")]
        kernel.compile(LINKED[kernel])
        count += 1
    return count


def _second_process(kernels: list[Any], queue: int) -> subprocess.Popen[bytes] | None:
    """Start a process that takes from the queue, its standard input. None if it cannot start."""
    if "python" not in os.path.basename(sys.executable or "").lower():
        return None  # Python is embedded in another program, which would be started again
    code = _CODE.format(path=sys.path, names=[_name(kernel) for kernel in kernels])
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    silent = subprocess.DEVNULL
    with suppress(Exception):  # it is optional, so an error at its start does not matter
        command = [sys.executable, *flags, "-c", code]
        return subprocess.Popen(command, stdin=queue, stdout=silent, stderr=silent)
    return None


def work_for_another_process(names: list[str]) -> None:
    """In the second process: compile kernels of LINKED with these names, as the queue says."""
    never_run()
    known = {_name(kernel): kernel for kernel in LINKED}
    _take(sys.stdin.fileno(), [known[name] for name in names])
    os._exit(0)  # at once: the first process waits for it


def _name(kernel: Any) -> str:
    """The name of a kernel, the same in every process."""
    return f"{kernel.py_func.__module__}.{kernel.py_func.__qualname__}"


def _called_by(kernel: Any) -> Iterator[Any]:
    """The kernels that this one calls by address, each after those that it calls itself."""
    for call in callees(kernel.py_func):
        yield from _called_by(call.kernel)
        yield call.kernel
