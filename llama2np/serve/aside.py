"""Work that is not generating in the batch: in a thread of its own, one piece at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.types import Receive

from llama2np.serve.errors import ApiError
from llama2np.serve.generating import unless_gone

T = TypeVar("T")


class Aside:
    """Runs one function at a time. most: how many may wait, the running one included.

    begin: is called first in the thread.
    """

    def __init__(self, most: int, begin: Callable[[], object] = lambda: None):
        self._most, self._count, self._lock = most, 0, threading.Lock()
        self._executor = ThreadPoolExecutor(1, "llama2np aside", begin)
        self._closed = threading.Event()

    async def run(self, receive: Receive, work: Callable[[Callable[[], bool]], T]) -> T:
        """The result of work(stopped), where stopped() is true when nobody waits for it any more.

        Raises ApiError if too many are waiting, and Gone.
        """
        with self._lock:
            if self._count >= self._most:
                raise ApiError(
                    429, "others are waiting already, try again later", None, "queue_full"
                )
            self._count += 1
        gone = threading.Event()
        future = self._executor.submit(work, lambda: gone.is_set() or self._closed.is_set())
        future.add_done_callback(self._done)
        try:
            return await unless_gone(receive, asyncio.wrap_future(future))
        finally:
            gone.set()

    def close(self) -> None:
        """Let the running function stop, and end the thread."""
        self._closed.set()
        self._executor.shutdown()

    def _done(self, _: Future[Any]) -> None:
        with self._lock:
            self._count -= 1
