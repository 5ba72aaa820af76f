"""The kernels of a run of all tests: one process compiles them, while tests that need none run.

A worker that needs a kernel of the package waits for it, instead of compiling it a second time. The
result stays in pytest's cache folder, so the next run of the same sources compiles nothing.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from llama2np import kernels
from llama2np.kernels.runtime.cache import Cache

ROOT = Path(__file__).parents[1]
# The folder of a run of all tests; its workers inherit this.
SHARED = "LLAMA2NP_TESTS_WARM"
SAID = "said.json"  # the last file that is written


def start(config: pytest.Config) -> None:
    """In the process that starts the workers: begin to compile, if these sources are new."""
    kept = _kept(config)
    # Among pytest's own folders, of which it removes old ones: also after a run that was killed.
    folder = config._tmp_path_factory.mktemp("warm") / "kernels"
    os.environ[SHARED] = str(folder)
    config.add_cleanup(lambda: os.environ.pop(SHARED))
    ours = kernels.CACHE_FOLDER and Path(kernels.CACHE_FOLDER)
    # A copy, since another run in this checkout, with other settings, may remove what is kept.
    if kept and _copied(kept, folder):
        _copy(folder, ours)
        return
    folder.mkdir()
    config.get_terminal_writer().line("the kernels are compiled while the first tests run")
    child = popen(folder)
    thread = threading.Thread(target=_follow, args=(child, folder, ours, kept))
    thread.start()
    config.add_cleanup(thread.join)
    config.add_cleanup(child.kill)  # first; without effect after its end


def popen(folder: Path) -> subprocess.Popen:
    """Start `llama2np warmup` with an empty cache. With one thread it takes less processor time."""
    return subprocess.Popen(
        [sys.executable, "-m", "llama2np", "warmup"],
        cwd=ROOT,
        env=os.environ | {"NUMBA_CACHE_DIR": str(folder / "cache"), "NUMBA_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child: subprocess.Popen, folder: Path) -> None:
    """Wait for its end, and note in the folder what it said."""
    out, err = child.communicate()
    said = {"status": child.returncode, "out": out, "err": err}
    (folder / "part").write_text(json.dumps(said))
    (folder / "part").rename(folder / SAID)


def _follow(child: subprocess.Popen, folder: Path, ours: Path | None, kept: Path | None) -> None:
    """Put each kernel into the tests' own cache as soon as it is compiled; keep all at the end."""
    while child.poll() is None:
        _copy(folder, ours)
        time.sleep(0.1)
    _copy(folder, ours)
    finish(child, folder)
    if child.returncode == 0 and kept:
        _copied(folder, kept)  # in vain if another run of the tests was first


def _copied(folder: Path, to: Path) -> bool:
    """Copy the kernels and what was said about them, all or nothing."""
    part = to.with_name(f"{to.name}.{os.getpid()}")
    try:
        shutil.copytree(folder, part)
        said = (part / SAID).read_text().replace(str(folder), str(to))
        (part / SAID).write_text(said)
        part.rename(to)
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        return False
    return True


def _copy(folder: Path, ours: Path | None) -> None:
    for path in folder.glob("cache/*/*.nbc") if ours else ():
        if not (ours / path.name).exists():
            part = ours / f"{path.name}.{os.getpid()}.part"
            with suppress(OSError):  # a full disk: the tests compile it then
                shutil.copy(path, part)
                part.rename(ours / path.name)


def _kept(config: pytest.Config) -> Path | None:
    """Where these sources' kernels are after a whole run. Those of other sources are removed.

    None: pytest has no cache folder (`-p no:cacheprovider`, or a checkout that cannot be written).
    """
    digest = hashlib.sha256(str(kernels.CACHE_FOLDER).encode())
    for path in sorted((ROOT / "llama2np").rglob("*.py")):
        digest.update(path.read_bytes())
    try:
        home = config.cache.mkdir("kernels")
    except (AttributeError, OSError):
        return None
    name = digest.hexdigest()[:16]
    for other in home.iterdir():
        if other.name != name:
            shutil.rmtree(other, ignore_errors=True)
    return home / name


def finished() -> bool:
    """Whether all kernels of `llama2np warmup` are there, or nobody compiles them."""
    folder = os.environ.get(SHARED)
    return folder is None or (Path(folder) / SAID).exists()


@contextmanager
def one_first(worker: str | None) -> Iterator[None]:
    """While the kernels are compiled, the first worker collects the tests before the others do.

    It compiles the test modules, and the others read its .pyc files.
    """
    if SHARED not in os.environ:
        yield
        return
    done = Path(os.environ[SHARED]) / "collected"
    if worker == "gw0":
        try:
            yield
        finally:
            done.touch()
        return
    while worker and not (done.exists() or finished()):
        time.sleep(0.05)
    yield


def wait() -> None:
    """For child processes, which would compile what is missing."""
    while not finished():
        time.sleep(0.05)


def wait_for_missing_kernels(patch: pytest.MonkeyPatch) -> None:
    """A kernel of the package that is not in the cache may be one that is being compiled."""

    def patiently(load):
        def loaded(self, sig, *rest):
            found = load(self, sig, *rest)
            if found is None and self._function.__module__.startswith("llama2np."):
                while not (self.has(sig) or finished()):
                    time.sleep(0.02)
                found = load(self, sig, *rest)
            return found

        return loaded

    if not finished():
        patch.setattr(Cache, "load_overload", patiently(Cache.load_overload))
        patch.setattr(Cache, "address", patiently(Cache.address))
