"""Fetch one of Karpathy's TinyStories models, or Llama 2's tokenizer, into the current folder.

python -m tools.download stories15M.bin

An interrupted download leaves NAME.part, and the same command resumes it. While it runs, a second
download of the same file is an error. There are no checksums: only the size of a file is checked.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from llama2np.advice import DOWNLOADS as FILES
from llama2np.atomic import sync_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_TIMEOUT = 30  # seconds without an answer, or without a byte
_CHUNK = 2**18
_INTERRUPTED = 130  # 128 + SIGINT: what a shell reports
_RESUME = "run the same command again to resume"


class _Failed(Exception):
    """A failed download. The text has what was expected, what was found, and what to do."""


def main(
    argv: Sequence[str], files: Mapping[str, tuple[int, str]] = FILES, folder: Path = Path()
) -> int:
    """Download the file that `argv` names into `folder`; return the exit status."""
    if len(argv) != 1 or argv[0] not in files:
        found = " ".join(argv) or "no name"
        print(f"{found}: expected one of {', '.join(files)}", file=sys.stderr)
        return 1
    name = argv[0]
    size, url = files[name]
    path, part = folder / name, folder / f"{name}.part"
    try:
        if path.exists():
            _check_size(path, size)
            print(f"{name}: already here, {size:,} bytes")
        else:
            _fetch(name, size, url, part)
            _check_size(part, size)
            os.replace(part, path)
            sync_folder(folder)
        return 0
    except KeyboardInterrupt:
        message, status = f"stopped at {_size(part):,} of {size:,} bytes: {_RESUME}", _INTERRUPTED
    except _Failed as error:
        message, status = str(error), 1
    except OSError as error:  # from the disk; errors of the network became _Failed
        message, status = f"cannot be written here ({_reason(error)})", 1
    print(f"{name}: {message}", file=sys.stderr)
    return status


def _fetch(name: str, size: int, url: str, part: Path) -> None:
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
            print(f"{name}: {size:,} bytes from {url}{resumed}", flush=True)
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
        return urlopen(request, timeout=_TIMEOUT)
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


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _host(url: str) -> str | None:
    return urlsplit(url).hostname


def _elsewhere(url: str) -> str:
    return f"The file can also be fetched by other means from {url} and put here"


def _reason(error: Exception) -> str:
    """The text of an error in one line; for a URLError, that of the error inside."""
    inner = getattr(error, "reason", error)
    text = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
