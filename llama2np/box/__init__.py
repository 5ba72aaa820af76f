"""The models that come with the package, found by name. README.md beside this is their card."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parent
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
