"""Server-sent events: the form in which OpenAI streams. They end when the client is gone."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

from starlette.types import Receive, Scope, Send

from llama2np.serve.errors import ApiError
from llama2np.serve.generating import Gone, Started, unless_gone

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # a proxy must not collect the events
]


class Events:
    """A response: each object of `source` as an event, then [DONE].

    An ApiError in between becomes an event with "error". source: made from what `started` yields.
    Both are closed at the end, also if the client goes away before the first event.
    """

    def __init__(self, source: AsyncGenerator[dict[str, Any], None], started: Started):
        self._source, self._started = source, started

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await unless_gone(receive, self._send(send))
        except Gone:
            pass
        finally:
            await self._source.aclose()
            await self._started.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        try:
            async for each in self._source:
                await send(_event(json.dumps(each, ensure_ascii=False)))
        except ApiError as error:
            await send(_event(json.dumps(error.body)))
        await send(_event("[DONE]"))
        await send({"type": "http.response.body", "body": b""})


def _event(data: str) -> dict[str, Any]:
    body = f"data: {data}\n\n".encode(errors="replace")
    return {"type": "http.response.body", "body": body, "more_body": True}
