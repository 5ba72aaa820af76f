"""Name → path, for bundled models, pulled models and paths. Only this module does it.

A pulled model has a folder of its own in the folder of models. Its files are complete when that has
a pulled.json, which is written last and removed first.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama2np import box
from llama2np.atomic import write_file
from llama2np.files import open_regular, read_at_most
from llama2np.store.catalogue import canonical
from llama2np.store.home import models_folder

StrPath = str | os.PathLike[str]
_RECORD = "pulled.json"
_LARGEST_RECORD = 2**16  # bytes
# smollm2, owner/model, or owner/model:file, as on huggingface.co
_NAME = re.compile(r"[\w.-]{1,96}(?:/[\w.-]{1,96}(?::[\w./+-]{1,200})?)?", re.ASCII)
HUB_NAME = re.compile(r"([\w.-]{1,96}/[\w.-]{1,96})(?::([\w./+-]{1,200}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Pulled:
    """A model that was downloaded."""

    name: str
    file: str  # in its folder; "" if the model is the folder itself
    licence: str
    source: str

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        folder = folder_of(self.name)
        assert folder is not None  # it was read from there
        return folder

    @property
    def path(self) -> Path:
        """The file or folder to load."""
        return self.folder / self.file

    @property
    def size(self) -> int:
        """The bytes of all its files."""
        return sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())


def located(path: StrPath) -> StrPath:
    """The file or folder of a bundled or pulled model, if `path` is its name; else `path` itself.

    Only a str can be a name. The name of a bundled model takes precedence over a file of that name,
    which can be written as ./stories-box, or as a Path. A path that exists takes precedence over
    the name of a pulled model, since that depends on the machine. Raises ValueError for "", which
    is an unset variable in a shell, and not the current folder.
    """
    if path == "":
        raise ValueError("the name of the model is empty, expected a file, a folder or a name")
    if box.in_box(path):
        return box.located(path)
    if not isinstance(path, str) or os.path.exists(path):
        return path
    found = find(path)
    return path if found is None else found.path


def find(name: str) -> Pulled | None:
    """The pulled model of this name; None if there is none, or only a part of it."""
    name = canonical(name)
    folder = folder_of(name)
    record = None if folder is None else _read(folder)
    return record if record is not None and record.name == name else None


def pulled() -> list[Pulled]:
    """All pulled models, by name."""
    home = models_folder()
    if home is None or not home.is_dir():
        return []
    records = (_read(folder) for folder in home.iterdir() if not folder.name.startswith("."))
    found = [record for record in records if record and folder_of(record.name)]
    return sorted(found, key=lambda record: record.name)


def folder_of(name: str) -> Path | None:
    """The folder that the files of this model have, if it is pulled; None: it is no name."""
    home = models_folder()
    if home is None or not _NAME.fullmatch(name) or name.startswith(".") or ".." in name:
        return None
    # No name on the hub has two hyphens in a row.
    return home / name.replace("/", "--").replace(":", "--")


def write_record(record: Pulled) -> None:
    """Declare the files of a model complete. Raises OSError."""
    write_file(record.folder / _RECORD, json.dumps(asdict(record), indent=2).encode() + b"\n")


def remove_record(folder: Path) -> None:
    """Declare the files of a model incomplete. Raises OSError."""
    (folder / _RECORD).unlink(missing_ok=True)


def _read(folder: Path) -> Pulled | None:
    try:
        with open_regular(folder / _RECORD) as file:
            data: Any = json.loads(read_at_most(file, _LARGEST_RECORD) or b"")
        record = Pulled(**data)
    except (OSError, ValueError, TypeError, RecursionError):
        return None  # not ours, or damaged
    fields = asdict(record).values()
    if not all(isinstance(text, str) for text in fields) or folder_of(record.name) != folder:
        return None
    inside = not os.path.isabs(record.file) and ".." not in Path(record.file).parts
    return record if inside and (folder / record.file).exists() else None
