"""Hostile files of a training: its checkpoint, and files of labelled texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from llama2np.formats.checkpoint import CheckpointError
from llama2np.learning import saved
from llama2np.learning.examples import Examples, Labelled
from llama2np.learning.optimizer import AdamW
from tools.scratch import written

CHECKPOINT = "training.npz"
_IDENTITY = json.dumps({"data": "texts", "settings": {"steps": 9}, "shapes": {"w": [3, 2]}})
_ROWS = [("good", "A fine film ."), ("bad", 'No "||| never" ,é'), ("good", "Nice")]


def checkpoints() -> list[dict[str, bytes]]:
    """Files of trainings that have taken no step, one, and nine."""
    made = []
    for steps in (0, 1, 9):
        optimizer = _optimizer()
        for _ in range(steps):
            optimizer.update({name: a + 1 for name, a in optimizer.parameters.items()}, 0.1)
        losses = [1.5] * steps

        def save(path: Path, optimizer: AdamW = optimizer, losses: list[float] = losses) -> None:
            saved.save(path, optimizer, _IDENTITY, losses, losses)

        made.append({CHECKPOINT: written(save, CHECKPOINT)})
    return made


def examples() -> list[dict[str, bytes]]:
    """The same labelled texts in each form."""
    quoted = [(n, '"' + t.replace('"', '""') + '"') for n, t in _ROWS]
    forms = {
        "examples.txt": [f"{n} ||| {t}\n" for n, t in _ROWS],
        "examples.csv": ["id,label,text\n", *(f"1,{n},{t}\n" for n, t in quoted)],
        "examples.jsonl": [json.dumps({"label": n, "text": t}) + "\n" for n, t in _ROWS],
    }
    return [{name: "".join(lines).encode()} for name, lines in forms.items()]


def exercise_checkpoint(folder: Path) -> None:
    """Go on from a checkpoint, as it is and with changed settings."""
    for identity in (_IDENTITY, None):
        optimizer = _optimizer()
        try:
            losses, norms = saved.load(folder / CHECKPOINT, optimizer, identity)
        except CheckpointError as error:
            _check(error, folder / CHECKPOINT)
            if optimizer.step or any((a != 1).any() for a in optimizer.parameters.values()):
                raise AssertionError("something was changed") from error
            continue
        if not optimizer.step == len(losses) == len(norms):
            raise AssertionError(f"{optimizer.step} steps, {len(losses)} losses")
        with np.errstate(all="ignore"):  # damaged moments
            optimizer.update({n: np.ones_like(a) for n, a in optimizer.parameters.items()}, 0.1)


def exercise_examples(folder: Path) -> None:
    """Read labelled texts, and make batches of them."""
    (path,) = folder.glob("examples.*")
    for names in ((), ("bad", "good")):
        try:
            found = Examples.read(path, names)
            data = Labelled(found, lambda text: [1, *text.encode("utf-8", "replace")], 2, 9)
        except ValueError as error:
            _check(error, path)
            continue
        if sum(len(data.batch(i).targets) for i in range(data.per_epoch)) != len(found):
            raise AssertionError("not every text is in a batch")


def _optimizer() -> AdamW:
    shapes = {"w": (3, 2), "norm": (2,)}
    return AdamW({name: np.ones(shape, np.float32) for name, shape in shapes.items()})


def _check(error: ValueError, path: Path) -> None:
    if not str(error).startswith(f"{path}: ") or not str(error).isprintable():
        raise AssertionError("not one of our errors") from error
