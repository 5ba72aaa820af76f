"""Suggestions in errors: the nearest name, a command, or how to get a missing file."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from llama2np import box

_ROOT = Path(__file__).parents[1]  # in a checkout: the folder with the scripts and the Makefile
_LONGEST = 60  # characters of a mistyped name that are compared
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")  # owner/model, as on huggingface.co

_MODELS = "https://huggingface.co/karpathy/tinyllamas/resolve/main"
_LLAMA2C = "https://raw.githubusercontent.com/karpathy/llama2.c/master"
# What `make NAME` fetches in a checkout: {name: (size in bytes, source)}.
DOWNLOADS = {
    "stories15M.bin": (60_816_028, f"{_MODELS}/stories15M.bin"),
    "stories42M.bin": (167_020_572, f"{_MODELS}/stories42M.bin"),
    "stories110M.bin": (438_381_596, f"{_MODELS}/stories110M.bin"),
    "tokenizer.bin": (433_869, f"{_LLAMA2C}/tokenizer.bin"),
}


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The name in `known` that a mistyped `word` most likely means; None if none is near."""
    import difflib  # imported only after a mistake

    names = {name.lower(): name for name in known}
    word = word.lower()[:_LONGEST]
    if len(word.strip("-")) > 2:
        for name in names:
            if name.startswith(word):
                return names[name]
    close = difflib.get_close_matches(word, names, 1)
    return names[close[0]] if close else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The suggestion of the nearest name, for the end of an error; "" if none is near."""
    name = nearest(word, known)
    return "" if name is None else f"; did you mean {name}?"


def command(name: str) -> str:
    """The command line of a command: in a checkout its script, otherwise `llama2np NAME`."""
    script = _ROOT / f"{name}.py"
    if not (_in_checkout() and script.is_file()):
        return f"llama2np {name}"
    words = ["python"] if os.name == "nt" else []
    return shlex.join([*words, f"./{script.name}" if _is_here(_ROOT) else str(script)])


def fetching(name: str) -> str:
    """How to get one of DOWNLOADS. Only a checkout has the Makefile that fetches it."""
    if not _in_checkout():
        return f"{name} can be downloaded from {DOWNLOADS[name][1]}"
    place = "" if _is_here(_ROOT) else f" in {_ROOT}"
    return f"`make {name}`{place} fetches it"


def missing_model(path: str | os.PathLike[str], bundled: bool) -> str:
    """The suggestion for a model that does not exist, for the end of the error.

    bundled: whether the name of a bundled model is allowed there.
    """
    text = os.fspath(path)
    name = os.path.basename(text)
    if name in DOWNLOADS:
        return f"; {fetching(name)}"
    if _HUB_NAME.fullmatch(text) and not os.path.isdir(os.path.dirname(text)):
        if nearest(name, DOWNLOADS) is None:
            return "; if that is a model on huggingface.co: download and export its folder"
    if not bundled:
        given = f"; `{command('export')} out.bin --bin {text}` takes the bundled model"
        return given if text in box.NAMES else ""
    if near := nearest(name, [*box.NAMES, *DOWNLOADS]):
        fetch = f" {fetching(near)}" if near in DOWNLOADS and not os.path.exists(near) else ""
        return f"; did you mean {near}?{fetch}"
    return f"; the bundled models are {' and '.join(box.NAMES)}"


def missing_tokenizer(path: str | os.PathLike[str]) -> str:
    """The suggestion for a tokenizer that does not exist, for the end of the error."""
    name = os.path.basename(os.fspath(path))
    if name == "tokenizer.bin":
        return f"; {fetching(name)}"
    return did_you_mean(name, ["tokenizer.bin", "tokenizer.model"])


def _is_here(folder: Path) -> bool:
    try:
        return os.path.samefile(os.curdir, folder)
    except OSError:  # the current folder has been removed
        return False


def _in_checkout() -> bool:
    return (_ROOT / "Makefile").is_file() and (_ROOT / "export.py").is_file()
