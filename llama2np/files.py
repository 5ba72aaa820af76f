"""Open files for reading: only regular files, and at most a limit of bytes.

Reading a FIFO or a socket may wait for ever, reading a device may never end.
"""

from __future__ import annotations

import errno
import io
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
    """Open a regular file for reading. Raises OSError, also for other kinds of files.

    The path is checked before it is opened, since opening a device can have effects. If it is
    replaced by a FIFO before it is opened, O_NONBLOCK prevents waiting for a writer.
    """
    _check_regular(path, os.stat(os.fspath(path)))
    file = io.BufferedReader(_Ready(path, opener=_without_waiting))
    try:
        _check_regular(path, os.fstat(file.fileno()))
    except OSError:
        file.close()
        raise
    return file


class _Ready(io.FileIO):
    """A file that reads at once: some files of /proc are regular, but would wait for an event."""

    def readinto(self, buffer: Any) -> Any:
        return self._checked(super().readinto(buffer))

    def readall(self) -> Any:
        return self._checked(super().readall())

    def _checked(self, found: Any) -> Any:
        if found is None:
            name = os.fsdecode(self.name)
            raise OSError(errno.EAGAIN, "has no end, expected a regular file", name)
        return found


def read_at_most(file: BinaryIO, limit: int) -> bytes | None:
    """The bytes of an open file; None if they are more than `limit`. Raises OSError."""
    size, data = os.fstat(file.fileno()).st_size, b""
    while max(size, len(data)) <= limit:  # files in /proc always claim to be empty
        part = file.read(max(size + 1 - len(data), 2**16))
        if not part:
            return data
        data += part
    return None


def zip_file(file: Any) -> zipfile.ZipFile:
    """Open a zip archive and limit the size of its directory. Raises zipfile's errors."""
    reader = _ZipReader(file)
    archive = zipfile.ZipFile(reader)
    reader.limit = None
    return archive


class _ZipReader:
    """The file of an archive, for zipfile, which makes 700 bytes of objects from 46 of the
    directory.
    """

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
    # Windows has neither of these flags, nor the files that need them.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


def _check_regular(path: str | os.PathLike[str], found: os.stat_result) -> None:
    if stat.S_ISREG(found.st_mode):
        return
    if stat.S_ISDIR(found.st_mode):
        text = f"{os.strerror(errno.EISDIR)}, expected a file"
        raise IsADirectoryError(errno.EISDIR, text, os.fspath(path))
    kind = _KINDS.get(stat.S_IFMT(found.st_mode), "of an unknown kind")
    raise OSError(errno.EINVAL, f"is {kind}, expected a regular file", os.fspath(path))
