"""How files are opened for reading: regular ones alone, and never more of them than a limit.

Reading a FIFO or a socket may wait for ever, reading a device may never end.
"""

from __future__ import annotations

import errno
import os
import stat
import zipfile
from typing import Any, BinaryIO

_KINDS = {
    stat.S_IFIFO: "a FIFO (named pipe)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}
_LARGEST_DIRECTORY = 2**24  # bytes of a zip archive's: some 200,000 files


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading. Raises OSError, also for what is none.

    The first look keeps us from opening devices, which can have effects. Should `path` be another
    file by the time it is opened, O_NONBLOCK keeps a FIFO from waiting for a writer.
    """
    _check_regular(path, os.stat(os.fspath(path)))
    file = open(path, "rb", opener=_without_waiting)
    try:
        _check_regular(path, os.fstat(file.fileno()))
    except OSError:
        file.close()
        raise
    return file


def read_at_most(file: BinaryIO, limit: int) -> bytes | None:
    """The bytes of an open file; None if they are more than `limit`. Raises OSError."""
    size, data = os.fstat(file.fileno()).st_size, b""
    while max(size, len(data)) <= limit:  # files of /proc claim to be empty, whatever they hold
        part = file.read(max(size + 1 - len(data), 2**16))
        if not part:
            return data
        data += part
    return None


def zip_file(file: Any) -> zipfile.ZipFile:
    """Open an archive whose directory is not out of proportion. Raises what zipfile raises."""
    reader = _ZipReader(file)
    archive = zipfile.ZipFile(reader)
    reader.limit = None
    return archive


class _ZipReader:
    """The file of an archive. zipfile makes objects of 700 bytes for each 46 of the directory."""

    def __init__(self, file: Any):
        self._file = file
        self.limit: int | None = _LARGEST_DIRECTORY

    def read(self, size: int = -1) -> bytes:
        """Like file.read. zipfile reads the directory in one piece, of the size that it claims."""
        if self.limit is not None and size > self.limit:
            raise zipfile.BadZipFile(
                f"its directory claims {size:,} bytes, expected at most {self.limit:,}"
            )
        data: bytes = self._file.read(size)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _without_waiting(path: str, flags: int) -> int:
    # Neither flag is there on Windows, nor anything that they are needed for.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


def _check_regular(path: str | os.PathLike[str], found: os.stat_result) -> None:
    if stat.S_ISREG(found.st_mode):
        return
    if stat.S_ISDIR(found.st_mode):
        text = f"{os.strerror(errno.EISDIR)}, expected a file"
        raise IsADirectoryError(errno.EISDIR, text, os.fspath(path))
    kind = _KINDS.get(stat.S_IFMT(found.st_mode), "of an unknown kind")
    raise OSError(errno.EINVAL, f"is {kind}, expected a regular file", os.fspath(path))
