"""Write a file completely or not at all: under a temporary name, and then rename it.

Readers of the path see the old file until the new one is complete and on the disk. Any number of
writers may have the same target: the last one wins. If the path is a symbolic link, its target is
replaced and the link is kept. Standard output, a pipe and a character device (/dev/stdout,
/dev/null) cannot be replaced: they are written to directly.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from secrets import token_hex
from typing import BinaryIO

Path = str | os.PathLike[str]
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # file systems without fsync


@contextmanager
def replacing(
    path: Path, size: int = 0, *, mode: int = 0o666, sync: bool = True
) -> Iterator[BinaryIO]:
    """Open a file for `size` bytes that replaces `path` at the end of the block.

    After an exception in the block, Ctrl-C included, `path` is unchanged and there is no other
    file. The new file keeps the permissions of the old one; without an old one it gets `mode`, less
    the umask. sync: wait until the file is on the disk. Without it a power cut may leave a damaged
    file.

    Raises OSError, which names `path`: no such folder, no permission, a target that is neither a
    file nor a pipe nor a character device, less than `size` bytes free, a full disk. `path` is
    then unchanged, unless syncing the folder after the renaming is what fails.
    """
    name = os.fsdecode(path)
    if _is_stream(name):
        with _naming(name), _open_stream(name) as stream:
            yield stream
        return
    with replacing_all({name: size}, mode=mode, sync=sync) as (file,):
        yield file


def write_file(path: Path, data: bytes) -> None:
    """Write a file of these bytes. Raises OSError as `replacing` does."""
    with replacing(path, len(data)) as file:
        file.write(data)


@contextmanager
def replacing_all(
    sizes: Mapping[Path, int], *, mode: int = 0o666, sync: bool = True
) -> Iterator[list[BinaryIO]]:
    """`replacing` for several files: all of them are replaced, or none.

    They are renamed when all are complete, in the order of `sizes`. If the process is killed
    between two renames, the first file is new and the last one is old.
    """
    files = [_NewFile(os.fsdecode(path), size, mode) for path, size in sizes.items()]
    with ExitStack() as lock:
        try:
            with _naming(files[-1].name):
                opened = [file.open() for file in files]
                yield opened
            for file, stream in zip(files, opened, strict=True):
                file.finish(stream, sync)
            if len(files) > 1:  # else two writers could leave one file of each
                lock.enter_context(_locked(os.path.dirname(files[0].path)))
            for file in files[:-1]:
                file.keep_old()
            for file in files:
                file.rename()
            for file in files[:-1]:
                file.clean()
            for folder in {os.path.dirname(file.path) for file in files} if sync else ():
                sync_folder(folder)
        except BaseException:
            try:
                _undo(files)
            finally:  # again, since a second Ctrl-C may have ended the first attempt
                _undo(files)
            raise


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Wait until no other thread or process has this folder locked, if the system has locks."""
    with ExitStack() as opened:
        with suppress(ImportError, OSError):  # Windows, and file systems without locks
            import fcntl

            descriptor = os.open(folder, os.O_RDONLY)
            opened.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def is_stdout(path: Path) -> bool:
    """Whether `path` is the file, pipe or terminal of standard output."""
    with suppress(OSError, ValueError):
        # If the shell has closed standard output, descriptor 1 may be any file.
        return sys.__stdout__ is not None and os.path.samestat(os.stat(path), os.fstat(1))
    return False


def sync_folder(folder: Path) -> None:
    """Wait until the names of the files in a folder are on the disk. Raises OSError."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows, or no permission to list the folder
        return
    try:
        _sync(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(folder)) from None
    finally:
        os.close(descriptor)


class _NewFile:
    """The new file for `path`. Its temporary name is `part`; the old file may also have `old`."""

    def __init__(self, name: str, size: int, mode: int) -> None:
        self.name, self.path, self.mode = name, _target(name), mode
        folder, last = os.path.split(self.path)
        if size and (free := shutil.disk_usage(folder).free) < size:
            raise OSError(errno.ENOSPC, f"needs {size:,} bytes, the disk has {free:,} free", name)
        # No other program has these 64 random bits: a file with such a name is ours.
        unique = os.path.join(folder, f"{last[:20]}.{token_hex(8)}")
        self.part, self.old = f"{unique}.part", f"{unique}.old"
        self.replaces = os.stat(self.path) if os.path.exists(self.path) else None
        self.file: BinaryIO | None = None

    def open(self) -> BinaryIO:
        mode = stat.S_IMODE(self.replaces.st_mode) if self.replaces else self.mode
        with _naming(self.name, self.part, self.old):
            file = open(self.part, "xb", opener=lambda name, how: os.open(name, how, mode))
        self.file = file
        if self.replaces:
            _give_permissions(file.fileno(), self.replaces)
        self.made = os.fstat(file.fileno())
        return file

    def finish(self, stream: BinaryIO, sync: bool) -> None:
        """Wait until all bytes are on the disk, and close the file: Windows cannot rename open
        files.
        """
        with _naming(self.name), stream:
            stream.flush()
            if sync:
                _sync(stream.fileno())

    def keep_old(self) -> None:
        """Give the old file a second name, if the file system supports that."""
        if self.replaces and hasattr(os, "link"):
            with suppress(OSError):
                os.link(self.path, self.old)

    def rename(self) -> None:
        with _naming(self.name, self.part, self.old):
            os.replace(self.part, self.path)

    def restore(self) -> None:
        """Undo the renaming, if it has happened."""
        if not os.path.exists(self.path) or not os.path.samestat(os.stat(self.path), self.made):
            return
        if os.path.exists(self.old):
            os.replace(self.old, self.path)
        elif not self.replaces:
            _unlink(self.path)

    def clean(self) -> None:
        """Remove all names but `path`."""
        if self.file:
            with suppress(OSError):  # it is removed next
                self.file.close()
        with _naming(self.name, self.part, self.old):
            _unlink(self.old)
            _unlink(self.part)


def _undo(files: list[_NewFile]) -> None:
    """Remove the new files. If some have been renamed, but not all, undo these renames."""
    if os.path.exists(files[-1].part):  # this one is renamed last
        for file in files[:-1]:
            file.restore()
    for file in reversed(files):
        file.clean()


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


@contextmanager
def _naming(name: str, *ours: str) -> Iterator[None]:
    """Put the target into errors: a failed write has no file name, other calls have our `part`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, *ours):
            raise OSError(error.errno, error.strerror, name) from None
        raise


def _target(name: str) -> str:
    """The file at `name`, with links followed. Raises OSError if it cannot be written."""
    path = os.path.realpath(name)
    folder = os.path.dirname(path)
    if os.path.isdir(path) or name.endswith(("/", os.sep)):
        raise IsADirectoryError(errno.EISDIR, "is a folder, expected a file to write", name)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "no such folder", folder)
    if os.path.islink(path):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
    if os.path.exists(path):
        if not os.path.isfile(path):
            raise OSError(errno.EINVAL, "not a regular file, cannot be replaced", name)
        if not os.access(path, os.W_OK):  # a rename would not check this
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
    return path


def _give_permissions(descriptor: int, old: os.stat_result) -> None:
    """Set owner, group and mode of the old file, as far as the system allows, and never more.

    The new file was created with the old one's mode, so it was never open to others before.
    """
    if not hasattr(os, "fchown"):  # Windows
        return
    for owner in (
        old.st_uid,
        -1,
    ):  # without the right to change the owner, a user may set the group
        with suppress(OSError):
            os.fchown(descriptor, owner, old.st_gid)
            break
    mode = stat.S_IMODE(old.st_mode)
    if os.fstat(descriptor).st_gid != old.st_gid:  # the permissions were for another group
        mode &= ~stat.S_IRWXG
    with suppress(OSError):  # the file system may have no modes
        os.fchmod(descriptor, mode)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _is_stream(name: str) -> bool:
    with suppress(OSError, ValueError):
        mode = os.stat(name).st_mode
        return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or is_stdout(name)
    return False


def _open_stream(name: str) -> BinaryIO:
    """Open a pipe or device for writing. Without a reader this is an error: it does not wait."""
    if is_stdout(name):
        return open(os.dup(1), "wb")
    flags = os.O_WRONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    try:
        descriptor = os.open(name, flags | getattr(os, "O_BINARY", 0))
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        raise OSError(errno.ENXIO, "a pipe or device without a reader", name) from None
    if hasattr(os, "set_blocking"):
        os.set_blocking(descriptor, True)
    return open(descriptor, "wb")
