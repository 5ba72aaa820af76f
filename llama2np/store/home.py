"""The folder of the downloaded models, and a lock, so that two processes do not write at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llama2np.store.errors import PullError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def models_folder() -> Path | None:
    """Where models are kept: `models` in $LLAMA2NP_HOME, else in the user's cache folder.

    The latter is $XDG_CACHE_HOME/llama2np, or ~/.cache/llama2np. None for a user without a home.
    """
    named = os.environ.get("LLAMA2NP_HOME")
    if named:
        return Path(os.path.expanduser(named)).absolute() / "models"
    cache = os.environ.get("XDG_CACHE_HOME") or ""
    home = cache if os.path.isabs(cache) else os.path.expanduser("~/.cache")
    return None if home.startswith("~") else Path(home) / "llama2np" / "models"


def writable_folder() -> Path:
    """`models_folder`, made if it is not there. Raises PullError, and OSError."""
    folder = models_folder()
    if folder is None:
        raise PullError("there is no home folder to keep models in: name one in LLAMA2NP_HOME")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def locked(folder: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Let only one process write to `folder`, by a lock on a file beside it; wait for others.

    tell: is called with a message if there is another one. A process that ends, in whatever way,
    gives its lock back. On Windows, and on file systems without locks, there is no lock: files
    are still replaced as a whole.
    """
    with open(folder.with_name(f".{folder.name}.lock"), "ab") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tell("another process is downloading this: waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                pass
        yield
