"""What leaves the program: files that are complete or not there, and lines for a terminal."""

from __future__ import annotations

import errno
import os
import reprlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

_LONGEST = 2000  # characters of a line; what is longer comes from a hostile file


def printable(text: str) -> str:
    """`text` as a line that does not drive a terminal: what is not printable is spelled out."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 4 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def brief(value: Any) -> str:
    """The beginning of repr(value), at a cost that does not depend on the value."""
    try:
        return reprlib.repr(value)[:60]
    except (ValueError, RecursionError):  # an int of thousands of digits
        return type(value).__name__


@contextmanager
def replacing(path: str | os.PathLike[str], size: int = 0) -> Iterator[BinaryIO]:
    """Open a file for `size` bytes that takes the place of `path` when the block is done.

    It is written beside `path`, with ".part" added to the name; an exception, Ctrl-C among them,
    removes it and leaves `path` as it was. Raises OSError: no such folder, not a regular file,
    less than `size` bytes free.
    """
    path = os.path.realpath(path)  # a link goes on pointing at the file
    part = f"{path}.part"
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "is a folder, expected a file to write", path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "not a regular file, cannot be replaced", path)
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "no such folder", folder)
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(errno.ENOSPC, f"needs {size:,} bytes, the disk has {free:,} free", path)
    try:
        with open(part, "wb") as file:
            yield file
        os.replace(part, path)
    except BaseException as error:
        if os.path.exists(part):
            os.unlink(part)
        if isinstance(error, OSError) and error.filename is None:  # a failed write does not say
            raise OSError(error.errno, error.strerror, path) from None
        raise
