"""Checkpoints of a training: NumPy's .npz, written whole or not at all.

It has the parameters ("p.NAME"), both moments ("m.NAME", "v.NAME"), the step, all losses and norms,
and the identity: a JSON text of the settings, the data and the shapes.
"""

from __future__ import annotations

import json
import os
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from llama2np import npz
from llama2np.atomic import replacing, write_file
from llama2np.files import open_regular, zip_file
from llama2np.formats.checkpoint import CheckpointError
from llama2np.learning.optimizer import AdamW
from llama2np.output import printable

StrPath = str | os.PathLike[str]
_LARGEST_IDENTITY = 2**24  # bytes; NumPy has four for each character


def save(
    path: StrPath, optimizer: AdamW, identity: str, losses: list[float], norms: list[float]
) -> None:
    """Write a checkpoint. Raises OSError; `path` is then unchanged."""
    arrays = {
        "step": np.array(optimizer.step),
        "identity": np.array(identity),
        "losses": np.array(losses, np.float64),
        "norms": np.array(norms, np.float64),
    }
    for kind, found in _kinds(optimizer).items():
        arrays |= {f"{kind}.{name}": array for name, array in found.items()}
    with replacing(path, sum(array.nbytes for array in arrays.values())) as file:
        np.savez(file, allow_pickle=False, **arrays)


def load(path: StrPath, optimizer: AdamW, identity: str | None) -> tuple[list[float], list[float]]:
    """Read a checkpoint into an optimizer and its parameters; return the losses and norms.

    identity: what the checkpoint must have; None: it may be of other settings and data.
    Raises CheckpointError for a file that is no checkpoint, or one of another training; nothing has
    been changed then. Raises OSError.
    """
    with open_regular(path) as file:
        try:
            with zip_file(file) as archive:
                found = npz.text(archive, "identity", _LARGEST_IDENTITY)
                if identity is None or found == identity:
                    return _read(archive, optimizer)
            difference = _difference(found, str(identity))
        except Exception as error:  # zipfile and NumPy raise many types, also tokenize's
            reason = " ".join(str(error).split()) or type(error).__name__
            text = f"{path}: not a checkpoint of a training, or a damaged one ({reason}): delete it"
            raise CheckpointError(printable(f"{text} to start again")) from None
    text = f"{path}: a checkpoint of another training, {difference}: delete it to start again"
    raise CheckpointError(printable(f"{text}, or allow the change"))


def _read(archive: zipfile.ZipFile, optimizer: AdamW) -> tuple[list[float], list[float]]:
    """Everything but the identity. Raises ValueError, and what `npz.array` does."""
    step = int(npz.array(archive, "step", np.zeros((), np.int64)))
    if step < 0:
        raise ValueError(f"it says that {step} steps were taken")
    losses, norms = (
        npz.array(archive, name, np.broadcast_to(np.float64(0), step)).tolist()
        for name in ("losses", "norms")
    )
    arrays = [
        (array, npz.array(archive, f"{kind}.{name}", array))
        for kind, found in _kinds(optimizer).items()
        for name, array in found.items()
    ]
    for array, values in arrays:
        array[...] = values
    optimizer.step = step
    return losses, norms


class Log:
    """A file with a line of JSON for each step. path: None for no file."""

    def __init__(self, path: StrPath | None):
        self._path, self._waiting = path, ""

    def add(self, line: dict[str, Any]) -> None:
        """Add a line, to be written next time."""
        if self._path is not None:
            self._waiting += json.dumps(line) + "\n"

    def write(self) -> None:
        """Write what has been added. Raises OSError; then nothing of it is in the file."""
        if self._path is None:
            return
        size = os.path.getsize(self._path) if os.path.exists(self._path) else 0
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(self._waiting)
        except OSError:
            with suppress(OSError):
                os.truncate(self._path, size)
            raise
        self._waiting = ""


def cut_log(path: StrPath, step: int) -> None:
    """Remove the lines of a log after a step, as they will be written again."""
    if not os.path.exists(path):
        return
    kept = []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, TypeError, KeyError):
            continue  # the last line may have been cut off
    write_file(path, "".join(kept).encode())


def _kinds(optimizer: AdamW) -> dict[str, dict[str, np.ndarray]]:
    return {"p": dict(optimizer.parameters), "m": optimizer.m, "v": optimizer.v}


def _difference(found: str, expected: str) -> str:
    """The first thing that differs between two identities. Raises ValueError for no identity."""
    ours, theirs = json.loads(expected), json.loads(found)
    if not isinstance(theirs, dict):
        raise ValueError("its identity is no JSON object")
    for part in ("data", "settings", "schedule", "shapes"):
        what, a, b = part, theirs.get(part), ours.get(part)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            what = next(k for k in {**a, **b} if a.get(k) != b.get(k))
            a, b = a.get(what), b.get(what)
        return f"with {what}={str(a)[:80]}, expected {str(b)[:80]}"
    raise ValueError("its identity has unknown parts")
