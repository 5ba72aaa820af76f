"""A file from a server. An interrupted download leaves NAME.part, and the same call resumes it.

While it runs, a second download of the same file into the same folder is an error. The size and the
sha256 of the file are checked before it gets its name.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from llama2np.atomic import sync_folder
from llama2np.store.catalogue import Item
from llama2np.store.errors import PullError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_TIMEOUT = 30  # seconds without an answer, or without a byte
_CHUNK = 2**18
_RESUME = "run the same command again to resume"


class _Failed(Exception):
    """A failed download. The text has what was expected, what was found, and what to do."""


def fetch(item: Item, folder: Path, tell: Callable[[str], None]) -> None:
    """Download a file into `folder`, if it is not there. tell: is called with messages.

    Raises PullError, and KeyboardInterrupt with a text that says how much is there.
    """
    name, size = item.name, item.size
    path, part = folder / name, folder / f"{name}.part"
    try:
        if path.exists():
            _check_size(path, size)
            _check_digest(path, item.sha256)
            tell(f"{name}: already here, {size:,} bytes")
        else:
            _fetch(name, size, item.url, part, tell)
            _check_size(part, size)
            _check_digest(part, item.sha256)
            os.replace(part, path)
            sync_folder(folder)
    except KeyboardInterrupt:
        message = f"stopped at {_size(part):,} of {size:,} bytes: {_RESUME}"
        raise KeyboardInterrupt(f"{name}: {message}") from None
    except _Failed as error:
        raise PullError(f"{name}: {error}") from None
    except OSError as error:  # from the disk; errors of the network became _Failed
        raise PullError(f"{name}: cannot be written here ({_reason(error)})") from None


def digest_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal digits. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _fetch(name: str, size: int, url: str, part: Path, tell: Callable[[str], None]) -> None:
    """Download into `part` up to `size` bytes; resume after those it has if the server can."""
    found = start = _size(part)
    if start == size:  # it was interrupted just before its renaming
        return
    if start > size:  # it is not a part of this file
        start = 0
    with _open(url, start) as response:
        start = _first_byte(response, start, size, url)
        terminal = sys.stderr.isatty()
        if not terminal:
            resumed = f", resumed at {start:,}" if start else ""
            tell(f"{name}: {size:,} bytes from {url}{resumed}")
        bar = tqdm(
            desc=name, initial=start, total=size, unit="B", unit_scale=True, disable=not terminal
        )
        with bar, _open_part(part, found) as file:
            file.truncate(start)
            for chunk in _chunks(response, start, size, url):
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())


def _open_part(part: Path, size: int) -> BinaryIO:
    """Open a .part of this size, or a new one, and lock it for this process."""
    if part.is_symlink() or (part.exists() and not part.is_file() and not part.is_dir()):
        raise _Failed(f"{part.name} is not a regular file: move or remove that")
    file = open(part, "ab")
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if isinstance(error, BlockingIOError):  # otherwise the file system has no locks
            size = -1
    if file.tell() == size:
        return file
    file.close()
    raise _Failed(f"another process writes {part.name}: wait for it, then run this again")


def _open(url: str, start: int) -> HTTPResponse:
    """Request the bytes from `start` on, or all of them if the server has none there."""
    # If the server redirects, as huggingface.co does, urllib repeats the Range.
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response: HTTPResponse = urlopen(request, timeout=_TIMEOUT)
        return response
    except HTTPError as error:
        error.close()
        if error.code == 416 and start:
            return _open(url, 0)
        raise _Failed(
            f"{_host(url)} answers {error.code} {error.reason}: try again later. {_elsewhere(url)}"
        ) from None
    except (OSError, HTTPException, ValueError) as error:  # ValueError: an invalid proxy
        raise _Failed(
            f"cannot reach {_host(url)} ({_reason(error)}): is there a network? {_elsewhere(url)}"
        ) from None


def _first_byte(response: HTTPResponse, start: int, size: int, url: str) -> int:
    """The offset at which the response begins: `start`, or 0 from a server without ranges.

    A response of another length, such as a proxy's page, is rejected before anything is written.
    """
    if response.status == 206:
        field, expected = "Content-Range", f"bytes {start}-{size - 1}/{size}"
    else:
        field, expected, start = "Content-Length", str(size), 0
    found = response.headers.get(field, "nothing")
    if found != expected:
        raise _Failed(
            f"needs {field} {expected}, {_host(url)} says {found}: another file? {_elsewhere(url)}"
        )
    return start


def _chunks(response: HTTPResponse, start: int, size: int, url: str) -> Iterator[bytes]:
    """Yield the bytes from `start` to `size` as they arrive."""
    while start < size:
        try:
            chunk = response.read1(min(_CHUNK, size - start))
            reason = "closed early"
        except (OSError, HTTPException) as error:
            chunk, reason = b"", _reason(error)
        if not chunk:
            raise _Failed(f"lost {_host(url)} ({reason}) at {start:,} of {size:,} bytes: {_RESUME}")
        yield chunk
        start += len(chunk)


def _check_size(path: Path, size: int) -> None:
    if _size(path) != size:
        raise _Failed(
            f"needs {size:,} bytes, {path.name} has {_size(path):,}: "
            "move or remove that, then run the same command again"
        )


def _check_digest(path: Path, sha256: str) -> None:
    """sha256: "" if it is not known."""
    if sha256 and (found := digest_of(path)) != sha256:
        raise _Failed(
            f"needs sha256 {sha256}, {path} has {found}: "
            "move or remove that, then run the same command again"
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _host(url: str) -> str | None:
    return urlsplit(url).hostname


def _elsewhere(url: str) -> str:
    return f"The file can also be fetched by other means from {url} and put here"


def _reason(error: Exception) -> str:
    """The text of an error in one line; for a URLError, of the error inside."""
    inner = getattr(error, "reason", error)
    text = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    return " ".join(text.split())
