"""The folder of the machine code of kernels.

numba keys its disk cache by one source file and the CPU. It does not notice an edit in another
file, a changed llvmlite, or two versions of a package with equal times and sizes. So the folder's
name is a hash of all of these: the code of other versions is never found.
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

_MODE = 0o700  # machine code is loaded from it: no other user may write to it


def cache_folder() -> Path | None:
    """The first of these folders that only this user can write to, or None.

    They are $NUMBA_CACHE_DIR; in a checkout of the repository, __pycache__ beside the kernels; for
    an installed package the user's cache folder, since pip does not remove files that it has not
    installed.
    """
    homes: list[str | Path | None] = [os.environ.get("NUMBA_CACHE_DIR")]
    if (_package().parent / "bootstrap.py").is_file():
        homes.append(_package() / "kernels" / "__pycache__")
    user = os.environ.get("XDG_CACHE_HOME") or ""
    homes.append(Path(user if os.path.isabs(user) else os.path.expanduser("~/.cache"), "llama2np"))
    for home in homes:
        # A "~" that is left means that the user has no home: a folder named "~" would be made.
        if not home or str(home).startswith("~"):
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
    """Whether a file or folder belongs to this user, and no other user may write to it."""
    if stat.S_ISLNK(status.st_mode):
        return False
    if not hasattr(os, "geteuid"):  # Windows, where other users cannot write to a user's folders
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
    """The text of every module in a folder, which may be in a zip archive such as a wheel."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith((".py", ".pyc")):
            yield entry.read_bytes()
        elif entry.is_dir() and entry.name != "__pycache__":
            yield from _sources(entry)
