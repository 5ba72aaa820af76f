"""Who may call the server, and with how much: checks before any endpoint."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from starlette.requests import Request
from starlette.types import Receive

from llama2np.serve.errors import ApiError
from llama2np.serve.generating import Gone

LOCAL = "localhost", "127.0.0.1", "[::1]"


def check_host(request: Request, hosts: Iterable[str]) -> None:
    """Raise an ApiError if the server was called by another name than these.

    A page of a stranger could otherwise reach a server on localhost, by a name of the stranger's
    that points there (DNS rebinding).
    """
    found = request.headers.get("host", "")
    name = found if found.endswith("]") else found.rpartition(":")[0] or found
    if (allowed := set(hosts)) and name.lower() not in allowed:
        raise ApiError(403, f"this server is not called {name!r}; expected {sorted(allowed)[0]}")


def check_key(request: Request, key: str | None) -> None:
    """Raise an ApiError if the request does not have the API key."""
    if key is None:
        return
    scheme, _, found = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(found.encode(), key.encode()):
        message = "expected the header Authorization: Bearer and the API key of this server"
        raise ApiError(401, message, code="invalid_api_key")


async def body_of(request: Request, most: int) -> bytes:
    """The body of a JSON request. Raises ApiError if it has more than `most` bytes, and Gone.

    A page of a stranger cannot send this content type to another server without asking it first.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "expected the header Content-Type: application/json")
    size = request.headers.get("content-length", "0")
    if size.isdecimal() and int(size[:20]) > most:
        raise _too_large(most)
    return await _read(request.receive, most)


async def _read(receive: Receive, most: int) -> bytes:
    data, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        data += message.get("body", b"")
        if len(data) > most:
            raise _too_large(most)
        more = message.get("more_body", False)
    return data


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body has more than {most:,} bytes, the maximum of this server")
