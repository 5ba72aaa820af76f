"""Submit requests to the worker, and read what it makes: all at once, or piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from typing import TypeVar

from starlette.types import Receive

from llama2np.decoding.completion import Completion
from llama2np.decoding.options import Request
from llama2np.serve.errors import ApiError
from llama2np.serve.metrics import Metrics
from llama2np.serve.worker import Closed, Full, News, Worker

T = TypeVar("T")


class Gone(Exception):
    """The client has closed the connection."""


class Generator:
    """The worker, for coroutines."""

    def __init__(self, worker: Worker, metrics: Metrics):
        self._worker, self._metrics = worker, metrics

    def check_count(self, count: int) -> None:
        """Raise an ApiError if a request wants more texts than there will ever be room for."""
        if count > (most := self._worker.capacity):
            raise ApiError(400, f"{count:,} texts in one request, expected at most {most:,}")

    def start(self, requests: Sequence[Request]) -> Started:
        """Submit requests; return an iterator over their news, which ends when all are done.

        If it is closed before its end, the sequences end with the worker's next step. Raises
        ApiError at the call if there is no room, and from the iterator if a sequence fails.
        """
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[News]()

        def notify(news: News) -> None:
            with suppress(RuntimeError):  # the loop has ended, and its client with it
                loop.call_soon_threadsafe(queue.put_nowait, news)

        try:
            tickets = self._worker.submit(requests, notify)
        except Full:
            raise ApiError(429, "the queue is full, try again later", code="queue_full") from None
        except Closed:
            raise ApiError(503, "the server is shutting down") from None

        def cancel() -> None:
            for ticket in tickets:
                ticket.cancel()

        async def news() -> AsyncGenerator[News, None]:
            left = len(tickets)
            try:
                while left:
                    each = await queue.get()
                    self._metrics.count(each)
                    left -= each.done
                    if each.completion.error is not None:
                        raise failed(each.completion.error)
                    yield each
            finally:
                cancel()

        return Started(news(), cancel)

    async def finish(self, requests: Sequence[Request]) -> list[Completion]:
        """The completions of requests, when all are done. Raises ApiError."""
        found: dict[int, Completion] = {}
        async with aclosing(self.start(requests)) as news:
            async for each in news:
                found[each.index] = each.completion
        return [found[i] for i in range(len(requests))]


class Started(AsyncIterator[News]):
    """An iterator that cancels the sequences when it is closed, also before its first value."""

    def __init__(self, source: AsyncGenerator[News, None], cancel: Callable[[], object]):
        self._source, self._cancel = source, cancel

    def __anext__(self) -> Awaitable[News]:
        return self._source.__anext__()

    async def aclose(self) -> None:
        """End the sequences."""
        self._cancel()
        await self._source.aclose()


def failed(error: Exception) -> ApiError:
    """The error for the client of a sequence that has failed."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValueError):
        return ApiError(400, str(error))
    return ApiError(500, f"{type(error).__name__}: {error}")


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled if the client goes away before. Raises Gone.

    The body of the request must have been read.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(until_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def until_gone(receive: Receive) -> None:
    """Wait until the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
