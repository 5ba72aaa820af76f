"""Chunks of prompts on Dask's workers. Only this module and worker.py import distributed."""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from distributed import CancelledError, Client, Future, KilledWorker, LocalCluster, as_completed

from llama2np import __version__
from llama2np.bulk.opened import JobError, one_line
from llama2np.bulk.tasks import Job
from llama2np.bulk.worker import Keeper, describe_there

_PATIENCE = 10  # seconds for a scheduler to answer
_OUTSTANDING = 2  # chunks for each thread of all workers: one is computed, one is on its way
_HELD = 8  # results for each outstanding chunk, if they are needed in order
_REFRESH = 5  # seconds after which the workers are counted again


@contextmanager
def local(workers: int) -> Iterator[Client]:
    """A client of `workers` processes on this machine, which end with the block.

    If one of them is killed, it is started again. Each takes one chunk at a time.
    """
    with warnings.catch_warnings():
        # If the usual port of the dashboard is in use, Dask takes another one, and warns.
        warnings.filterwarnings("ignore", "(?s).*Port .* is already in use", UserWarning)
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,  # Dask counts a mapped model as memory of each worker
            dashboard_address="127.0.0.1:8787",
            silence_logs=logging.CRITICAL,  # the errors that matter become one line of ours
        )
    with cluster, Client(cluster) as client:
        yield client


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
    future = client.submit(describe_there, job, pure=False)
    try:
        found = future.result()
    except KilledWorker:
        raise JobError(f"{job.model}: opening it killed the workers") from None
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
    the caller keeps because an earlier one is not there; many of them hold up new calls. If a call
    kills its worker again and again, its result is a KilledWorker. Raises JobError.
    """
    window, source = _Window(client), iter(calls)
    done = as_completed(loop=client.loop)
    running: dict[Future, str] = {}
    prefix = f"{name}-{time.time_ns():x}"
    try:
        more = True
        while more or running:
            while more and len(running) < (size := window.size()) and held() < _HELD * size:
                new = next(source, None)
                if new is None:
                    more = False
                    break
                key, arguments = new
                future = client.submit(call, *arguments, key=(prefix, key), pure=False)
                running[future] = key
                done.add(future)
            if running:
                future = next(done)
                key = running.pop(future)
                yield key, _result(future, client)
                future.release()
    finally:
        if running:
            client.cancel(list(running))


def _result(future: Future, client: Client) -> Any:
    try:
        return future.result()
    except KilledWorker as error:
        return error
    except CancelledError:
        address = client.scheduler.address if client.scheduler else "its address"
        raise JobError(f"{address}: the scheduler has gone; run it again to go on") from None
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
            threads = sum(self._client.nthreads().values())
            self._size, self._at = max(_OUTSTANDING * threads, 1), now
        return self._size


def _asking() -> Callable[[], str]:
    """A function that goes to the workers as it is, also to those without llama2np."""

    def ask() -> str:
        try:
            import llama2np
        except ImportError:
            return "is not installed"
        return llama2np.__version__

    return ask
