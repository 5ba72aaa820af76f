"""Chunks of prompts on Dask's workers. Only this module and worker.py import distributed."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import dask
from distributed import CancelledError, Client, Future, KilledWorker, LocalCluster, as_completed
from distributed.utils import get_mp_context

from llama2np import __version__
from llama2np.bulk.opened import JobError, one_line
from llama2np.bulk.tasks import Job
from llama2np.bulk.worker import Keeper, describe_there

_PATIENCE = 10  # seconds for a scheduler to answer
# Ctrl-C goes to all processes of a terminal. The client ends the workers, in order.
_NO_INTERRUPTS = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
# Dask's processes wake up 50 times a second by default, and sample what their threads do. That took
# 3 % of a processor for each of them.
_FEW_TICKS = {
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.tick.cycle": "5s",
    "distributed.worker.profile.enabled": False,
}
# On Linux, workers are forks of a process that has imported all of this: elsewhere, and by default,
# each imports it again, which takes 1.3 seconds of processor time.
_FORKED = {"distributed.worker.multiprocessing-method": "forkserver"}
_IMPORTED = "distributed", "llama2np.bulk.worker", "llama2np.llama", "llama2np.kernels"
_OUTSTANDING = 2  # chunks for each thread of all workers: one is computed, one is on its way
_HELD = 8  # results for each outstanding chunk, if they are needed in order
_REFRESH = 5  # seconds after which the workers are counted again


@contextmanager
def local(workers: int) -> Iterator[Client]:
    """A client of `workers` processes on this machine, which end with the block.

    If one of them is killed, it is started again. Each takes one chunk at a time. Raises OSError.
    """
    with dask.config.set(_FEW_TICKS | _started_fast()), warnings.catch_warnings():
        # If the usual port of the dashboard is in use, Dask takes another one, and warns.
        warnings.filterwarnings("ignore", "(?s).*Port .* is already in use", UserWarning)
        try:
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=0,  # Dask counts a mapped model as memory of each worker
                dashboard_address="127.0.0.1:8787",
                preload=_NO_INTERRUPTS,
                silence_logs=logging.CRITICAL,  # the errors that matter become one line of ours
            )
        except RuntimeError as error:
            raise OSError(f"the workers cannot be started: {one_line(error)}") from None
    with dask.config.set(_FEW_TICKS | _started_fast()), cluster, Client(cluster) as client:
        yield client


def _started_fast() -> dict[str, str]:
    """Dask's settings for starting workers."""
    if sys.platform != "linux":
        return {}
    with dask.config.set(_FORKED):
        context = get_mp_context()  # sets Dask's own imports, once
    context.set_forkserver_preload([*_IMPORTED])  # before the first worker
    return _FORKED


@contextmanager
def remote(address: str) -> Iterator[Client]:
    """A client of the scheduler at an address, or of that which has written a scheduler file.

    Raises OSError if none answers there.
    """
    where = {"scheduler_file": address} if os.path.isfile(address) else {"address": address}
    try:
        client = Client(**where, timeout=_PATIENCE)
    except (OSError, ValueError, TimeoutError) as error:
        raise OSError(f"{address}: no Dask scheduler answers there ({one_line(error)})") from None
    with client:
        yield client


def prepare(client: Client, job: Job) -> dict[str, Any]:
    """Check the workers, let each keep its models, and return the fingerprint of the job's model.

    Waits until there is a worker. Raises JobError.
    """
    client.wait_for_workers(1)
    versions = client.run(_asking(), on_error="return")
    for worker, found in versions.items():
        if found != __version__:
            told = found if isinstance(found, str) else one_line(found)
            raise JobError(f"worker {worker}: llama2np {told} there, {__version__} here")
    client.register_plugin(Keeper())
    found = _result(client.submit(describe_there, job, pure=False))
    if isinstance(found, KilledWorker):
        raise JobError(f"{job.model}: the workers that opened it have died")
    assert isinstance(found, dict)
    return found


def completed(
    client: Client,
    name: str,
    call: Callable[..., Any],
    calls: Iterable[tuple[str, tuple[Any, ...]]],
    held: Callable[[], int] = int,
) -> Iterator[tuple[str, Any]]:
    """Do calls on the workers; yield (key, result) as they are done.

    calls: (key, arguments), taken one by one: there are never more calls outstanding than twice the
    threads of all workers. name: of the calls, on the dashboard. held: the number of results that
    the caller keeps because an earlier one is not there; many of them hold up new calls. If the
    workers of a call die again and again, its result is a KilledWorker. Raises JobError.
    """
    window, source, given_up = _Window(client), iter(calls), deque[_Call]()
    running = _Running(client, name, call)
    try:
        while True:
            while len(running) < (size := window.size()) and held() < _HELD * size:
                new = next(source, None)
                if new is None:
                    break
                running.begin(_Call(*new))
            if not len(running) and given_up:
                running.begin(given_up.popleft())
            if not len(running):
                return
            done, result = running.next()
            if isinstance(result, KilledWorker) and not done.again:
                # Dask blames all calls of a dead worker, also those that waited there: this one
                # runs once more when the others are done, and alone.
                given_up.append(replace(done, again=True))
            else:
                yield done.key, result
    finally:
        running.cancel()


@dataclass(frozen=True)
class _Call:
    key: str
    arguments: tuple[Any, ...]
    again: bool = False


class _Running:
    """The calls that are outstanding."""

    def __init__(self, client: Client, name: str, call: Callable[..., Any]):
        self._client, self._call = client, call
        self._name = f"{name}-{time.time_ns():x}"  # no call of another run has it
        self._done = as_completed(loop=client.loop)
        self._calls: dict[Future, _Call] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def begin(self, new: _Call) -> None:
        """Give a call to the workers."""
        task = (f"{self._name}-again" if new.again else self._name, new.key)
        future = self._client.submit(self._call, *new.arguments, key=task, pure=False)
        self._calls[future] = new
        self._done.add(future)

    def next(self) -> tuple[_Call, Any]:
        """Wait for one of the calls; return it and its result."""
        future = next(self._done)
        result = _result(future)
        future.release()
        return self._calls.pop(future), result

    def cancel(self) -> None:
        """Let the workers forget the calls that are not done."""
        if self._calls:
            self._client.cancel(list(self._calls))


def _result(future: Future) -> Any:
    try:
        return future.result()
    except KilledWorker as error:
        return error
    except CancelledError:
        raise _gone() from None
    except JobError:
        raise
    except Exception as error:
        raise JobError(f"a worker failed: {type(error).__name__}: {one_line(error)}") from error


class _Window:
    """How many calls may be outstanding; it grows with the workers."""

    def __init__(self, client: Client):
        self._client, self._size, self._at = client, 1, -math.inf

    def size(self) -> int:
        now = time.monotonic()
        if now - self._at > _REFRESH:
            try:
                threads = sum(self._client.nthreads().values())
            except OSError:
                raise _gone() from None
            self._size, self._at = max(_OUTSTANDING * threads, 1), now
        return self._size


def _gone() -> JobError:
    return JobError("the scheduler has gone; run it again to go on")


def _asking() -> Callable[[], str]:
    """A function that goes to the workers as it is, also to those without llama2np."""

    def ask() -> str:
        try:
            import llama2np
        except ImportError:
            return "is not installed"
        return llama2np.__version__

    return ask
