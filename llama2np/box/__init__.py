"""The bundled models, which are found by their names. README.md beside this is their model card."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

FOLDER = Path(__file__).parent
if not FOLDER.is_dir():  # the package is in a zip archive, whose files cannot be mapped
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
    """The file of a bundled model, if `path` is its name; any other path unchanged.

    Only a str can be a name. It takes precedence over a file with that name, which can be written
    as ./stories-box, or as a Path.
    """
    return FOLDER / f"{path}.bin" if in_box(path) else path


def in_box(path: str | os.PathLike[str]) -> bool:
    """Whether this is the name of a bundled model."""
    return path in NAMES
