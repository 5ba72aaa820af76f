"""Files with a checksum: a damaged file, or one of another user, is treated as missing."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from contextlib import suppress
from pathlib import Path

from llama2np.atomic import replacing
from llama2np.kernels.runtime.cache_folder import is_ours

_SIZE = 32  # bytes of the checksum, at the beginning


def write(path: Path, key: bytes, data: bytes) -> None:
    """Write a file for `read` with the same key of at most 64 bytes. Raises OSError."""
    # Not synced: a file that a power cut has damaged fails the check, and is written again.
    with replacing(path, mode=0o600, sync=False) as file:
        file.write(_checksum(key, data) + data)


def read(path: Path, key: bytes) -> bytes | None:
    """The data that `write` has written with this key; otherwise remove the file, return None."""
    try:
        data = _content(path)
    except FileNotFoundError:
        return None
    except (OSError, MemoryError):
        data = b""
    if hmac.compare_digest(data[:_SIZE], _checksum(key, data[_SIZE:])):
        return data[_SIZE:]
    remove(path)
    return None


def remove(path: Path) -> None:
    """Remove a file if possible."""
    with suppress(OSError):
        os.unlink(path)


def _content(path: Path) -> bytes:
    """The bytes of a regular file of this user, b"" for any other file. Raises OSError."""
    flags = os.O_RDONLY
    for name in ("O_BINARY", "O_NONBLOCK", "O_NOFOLLOW"):  # NONBLOCK: a named pipe would wait
        flags |= getattr(os, name, 0)
    with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
        status = os.fstat(file.fileno())
        return file.read() if stat.S_ISREG(status.st_mode) and is_ours(status) else b""


def _checksum(key: bytes, data: bytes) -> bytes:
    # The key is included, so that a file under the name of another is rejected, too.
    return hashlib.blake2b(data, digest_size=_SIZE, key=key).digest()
