"""Suggestions in errors: the nearest name, a command, or how to get a missing file."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from llama2np import box
from llama2np.store.catalogue import CATALOGUE, FILES, canonical

_ROOT = Path(__file__).parents[1]  # in a checkout: the folder with the scripts and the Makefile
_LONGEST = 60  # characters of a mistyped name that are compared
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w./+-]+)?")  # owner/model:file, as on huggingface.co


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


def installed(words: str) -> str:
    """The command line of a command without a script, as this user can type it.

    In a checkout, `llama2np` is a command only where its environment is active.
    """
    name = "llama2np"
    if _in_checkout() and shutil.which(name) is None:
        venv = ("Scripts", f"{name}.exe") if os.name == "nt" else ("bin", name)
        script = Path(".venv", *venv)
        name = f"{shlex.quote(sys.executable)} -m {name}"
        if (_ROOT / script).is_file():
            name = str(script) if _is_here(_ROOT) else shlex.quote(str(_ROOT / script))
    return f"{name} {words}"


def fetching(name: str) -> str:
    """How to get a model of the catalogue, or one of FILES, which a checkout's Makefile fetches."""
    if not (name in FILES and _in_checkout()):
        folder = " --folder ." if name == "tokenizer.bin" else ""
        command_line = installed(f"pull {canonical(name)}{folder}")
        return f"`{command_line}` downloads it"
    place = "" if _is_here(_ROOT) else f" in {_ROOT}"
    return f"`make {name}`{place} fetches it"


def missing_model(path: str | os.PathLike[str], bundled: bool) -> str:
    """The suggestion for a model that does not exist, for the end of the error.

    bundled: whether the name of a bundled model is allowed there.
    """
    text = os.fspath(path)
    name = os.path.basename(text)
    if name in FILES or text in CATALOGUE:
        return f"; {fetching(name)}"
    on_hub = canonical(text)
    if _HUB_NAME.fullmatch(on_hub) and not os.path.isdir(os.path.dirname(text)):
        if nearest(name, FILES) is None:
            pull = installed(f"pull {on_hub}")
            return f"; if that is a model on huggingface.co: `{pull}` downloads it"
    if not bundled:
        given = f"; `{command('export')} out.bin --bin {text}` takes the bundled model"
        return given if text in box.NAMES else ""
    if text in box.NAMES and not isinstance(path, str):
        return f"; the bundled model of this name is the str {text!r}, not a path"
    if near := nearest(name, [*box.NAMES, *CATALOGUE, *FILES]):
        fetch = f" {fetching(near)}" if near not in box.NAMES and not os.path.exists(near) else ""
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
