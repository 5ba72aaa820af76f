"""The models that come with the package, found by name. README.md beside this is their card."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

FOLDER = Path(__file__).parent
if not FOLDER.is_dir():  # in a zip archive, as of a wheel: only files outside of it can be mapped
    _unpacked = TemporaryDirectory(ignore_cleanup_errors=True)  # until the process ends
    FOLDER = Path(_unpacked.name)
    for _file in files(__name__).iterdir():
        if _file.name.endswith(".bin"):
            (FOLDER / _file.name).write_bytes(_file.read_bytes())
STORIES = "stories-box"  # float32, version 0
STORIES_INT8 = "stories-box-q8"  # the same model in Q8_0, version 2
NAMES = (STORIES, STORIES_INT8)
TOKENIZER = FOLDER / "tokenizer.bin"


def located(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The file of a model in the box, where `path` is its name; any other path as it is.

    A name is a string, and wins over a file of that name: that is ./stories-box, or a Path.
    """
    return FOLDER / f"{path}.bin" if in_box(path) else path


def in_box(path: str | os.PathLike[str]) -> bool:
    """Whether this is the name of a model in the box."""
    return path in NAMES
