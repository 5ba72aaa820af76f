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

from llama2np.atomic import replacing, write_file
from llama2np.formats.checkpoint import CheckpointError
from llama2np.learning.optimizer import AdamW

StrPath = str | os.PathLike[str]


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
    Raises CheckpointError for a file that is no checkpoint, or one of another training.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            if identity is not None:
                _check(path, str(file["identity"]), identity)
            step = int(file["step"])
            losses, norms = (file[name].tolist() for name in ("losses", "norms"))
            read = {
                kind: {name: file[f"{kind}.{name}"] for name in found}
                for kind, found in _kinds(optimizer).items()
            }
    except CheckpointError:
        raise
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path}: not a checkpoint of a training, or a damaged one ({error}): delete it to "
            "start again"
        ) from None
    if not step == len(losses) == len(norms):
        raise CheckpointError(f"{path}: {step} steps and {len(losses)} losses: a damaged file")
    for kind, found in _kinds(optimizer).items():
        for name, array in found.items():
            if read[kind][name].shape != array.shape:
                raise CheckpointError(f"{path}: {name} has shape {read[kind][name].shape}")
            array[...] = read[kind][name]
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


def _check(path: StrPath, found: str, expected: str) -> None:
    """Raise CheckpointError with the first thing that differs."""
    if found == expected:
        return
    ours, theirs = json.loads(expected), json.loads(found)
    for part in ("data", "settings", "schedule", "shapes"):
        if ours.get(part) != theirs.get(part):
            what, a, b = part, theirs.get(part), ours.get(part)
            if isinstance(a, dict) and isinstance(b, dict):
                what = next(k for k in {**a, **b} if a.get(k) != b.get(k))
                a, b = a.get(what), b.get(what)
            raise CheckpointError(
                f"{path}: a checkpoint of another training, with {what}={a}, expected {b}: delete "
                "it to start again, or allow the change"
            )
