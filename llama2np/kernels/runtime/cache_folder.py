"""The folder where the machine code of kernels is kept.

numba keys its disk cache by one source file and the CPU. It does not see an edit in another file, a
changed llvmlite, or two versions of a package with equal times and sizes. So the folder's name
is a hash of all of these: code that is not ours, as it is now, is never found.
"""

from __future__ import annotations

import hashlib
import os
import platform
import stat
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np

import llama2np

_MODE = 0o700  # machine code is loaded from there: nobody else may write it


def cache_folder() -> Path | None:
    """The first of these that is ours alone and can be written, or None.

    $NUMBA_CACHE_DIR; __pycache__ beside the kernels, in a checkout of the repository; the user's
    cache folder, where the package was installed: pip would not remove files that it does not know.
    """
    homes: list[str | Path | None] = [os.environ.get("NUMBA_CACHE_DIR")]
    if (_package().parent / "bootstrap.py").is_file():
        homes.append(_package() / "kernels" / "__pycache__")
    user = os.environ.get("XDG_CACHE_HOME") or ""
    homes.append(Path(user if os.path.isabs(user) else os.path.expanduser("~/.cache"), "llama2np"))
    for home in homes:
        if not home or str(home).startswith("~"):  # there is no home: it would become a folder "~"
            continue
        folder = Path(home).absolute() / f"kernels-{_fingerprint()}"
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(_MODE, exist_ok=True)
            if is_ours(folder.lstat()):
                tempfile.TemporaryFile(dir=folder).close()
                return folder
        except OSError:
            continue
    return None


def is_ours(status: os.stat_result) -> bool:
    """Whether a file or folder of this status belongs to this user and no other may write it."""
    if stat.S_ISLNK(status.st_mode):
        return False
    if not hasattr(os, "geteuid"):  # Windows, where a user's folders are the user's
        return True
    writers = stat.S_IWGRP | stat.S_IWOTH
    return status.st_uid == os.geteuid() and not status.st_mode & writers


def _package() -> Path:
    return Path(llama2np.__file__).parent


def _fingerprint() -> str:
    digest = hashlib.sha256()
    for source in _sources(files("llama2np.kernels")):
        digest.update(source)
    versions = (platform.python_version(), np.__version__, numba.__version__, llvmlite.__version__)
    settings = os.environ.get("LLAMA2NP_INT8"), bool(numba.config.BOUNDSCHECK)
    digest.update(repr((*versions, *settings)).encode())
    return digest.hexdigest()[:16]


def _sources(folder: Any) -> Iterator[bytes]:
    """The text of every module in a folder, which may be in a zip archive, as of a wheel."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith((".py", ".pyc")):
            yield entry.read_bytes()
        elif entry.is_dir() and entry.name != "__pycache__":
            yield from _sources(entry)
