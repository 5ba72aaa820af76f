"""Files with a checksum: one that is damaged, or that another user wrote, counts as missing."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from contextlib import suppress
from pathlib import Path

from llama2np.atomic import replacing
from llama2np.kernels.runtime.cache_folder import is_ours

_SIZE = 32  # bytes of the checksum, in front


def write(path: Path, key: bytes, data: bytes) -> None:
    """Write a file that `read` finds with this key of at most 64 bytes. Raises OSError."""
    # Not synced: after a power cut a damaged file is found to be damaged, and is made again.
    with replacing(path, mode=0o600, sync=False) as file:
        file.write(_checksum(key, data) + data)


def read(path: Path, key: bytes) -> bytes | None:
    """The bytes that `write` was given with this key, or None: then what is there is removed."""
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
    """Remove a file, if that is possible."""
    with suppress(OSError):
        os.unlink(path)


def _content(path: Path) -> bytes:
    """The bytes of a regular file of ours, none of any other. Raises OSError."""
    flags = os.O_RDONLY
    for name in ("O_BINARY", "O_NONBLOCK", "O_NOFOLLOW"):  # NONBLOCK: a named pipe would wait
        flags |= getattr(os, name, 0)
    with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
        status = os.fstat(file.fileno())
        return file.read() if stat.S_ISREG(status.st_mode) and is_ours(status) else b""


def _checksum(key: bytes, data: bytes) -> bytes:
    # The key is part of it: a file under another's name is refused, too.
    return hashlib.blake2b(data, digest_size=_SIZE, key=key).digest()
