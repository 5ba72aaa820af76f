"""The kind of a file, recognised by its first bytes, and advice about it. table.py has all kinds.

A reader uses this only after it has rejected a file. So no file is rejected because of the table,
and an error names the kind of the file instead of a wrong number in a header that it does not have.
"""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeAlias, TypeVar

from llama2np import advice
from llama2np.formats.kinds.places import MODEL, OTHER, PLACES, STATE, TOKENIZER, Place
from llama2np.formats.kinds.signs import Head
from llama2np.formats.kinds.table import FOLDER, FOLDER_FLAGS, KINDS, NOT_YET, Kind

StrPath: TypeAlias = str | os.PathLike[str]
P = ParamSpec("P")
R = TypeVar("R")


def kind_of(path: StrPath) -> str:
    """The id of the kind of a file or folder; "" if it is unknown or cannot be opened."""
    _, kind = _recognised(path)
    return kind.id if kind else ""


def explained(path: StrPath, place: str) -> str | None:
    """One line with the kind of a file that was rejected in that place, and what to do.

    None if the kind is unknown, or if the reader of that place has a better error for it.
    """
    head, kind = _recognised(path)
    here = PLACES[place]
    if head is None or kind is None or kind.id in here.reads:
        return None
    way = _way(kind, here, head)
    return f"{path}: not {here.expected}, but {kind.name}{': ' if way else ''}{way}"


def way_out(path: StrPath, place: str) -> str:
    """What to do with a file in that place, beginning with ": "; "" if there is no advice."""
    head, kind = _recognised(path)
    if head is None or kind is None or kind.source == f"--{place}":  # it is what was tried
        return ""
    way = _way(kind, PLACES[place], head)
    return f": {way}" if way else ""


@contextmanager
def named(path: StrPath, place: str, error: type[ValueError]) -> Iterator[None]:
    """Improve the errors of reading `path` in the block: they name its kind, or a missing file.

    error: the type that is raised, with the kind of the file, in place of an OSError or an error of
    that type. For a missing file, a FileNotFoundError is raised with a suggestion.
    """
    try:
        yield
    except (error, OSError) as refusal:
        if text := explained(path, place):
            raise error(text) from None
        if isinstance(refusal, FileNotFoundError) and not os.path.exists(path):
            text = os.strerror(errno.ENOENT)
            if refusal.strerror == text:  # an inner reader has not added a suggestion
                text += _missing(path, PLACES[place])
                raise FileNotFoundError(errno.ENOENT, text, refusal.filename) from None
        if isinstance(refusal, OSError) and refusal.errno and refusal.filename is None:  # of a read
            raise OSError(refusal.errno, refusal.strerror, os.fspath(path)) from None
        raise


def reader(
    place: str, error: type[ValueError]
) -> Callable[[Callable[Concatenate[StrPath, P], R]], Callable[Concatenate[StrPath, P], R]]:
    """`named`, for a function whose first argument is the path."""

    def decorate(
        read: Callable[Concatenate[StrPath, P], R],
    ) -> Callable[Concatenate[StrPath, P], R]:
        @wraps(read)
        def reading(path: StrPath, /, *arguments: P.args, **options: P.kwargs) -> R:
            with named(path, place, error):
                return read(path, *arguments, **options)

        return reading

    return decorate


def _recognised(path: StrPath) -> tuple[Head | None, Kind | None]:
    try:
        head = Head(Path(path))
        return head, next((kind for kind in KINDS if kind.matches(head)), None)
    except (OSError, ValueError):  # ValueError: this cannot be a path
        return None, None


def _way(kind: Kind, place: Place, head: Head) -> str:
    """What to do with a file that is in the wrong place."""
    beside = _tokenizer_beside(head)
    if kind.role == MODEL and place.role == TOKENIZER:
        return f"name its tokenizer: {beside or 'tokenizer.json, tokenizer.model or tokenizer.bin'}"
    if kind.role != OTHER and (place.is_part or place.role in (STATE, OTHER)):
        return ""
    if kind.source:
        return _conversion(kind.source, place, head)
    way = kind.way.format(
        path=_quoted(head.path),
        folder=_quoted(head.folder),
        below=_quoted(next(iter(head.models_below), head.folder)),
        export=advice.command("export"),
    )
    if kind.role == TOKENIZER and kind.way.startswith(NOT_YET) and beside:
        way += f"; {beside} is beside it"
    return way


def _conversion(flag: str, place: Place, head: Head) -> str:
    """The command that converts a model, or the path to use if no conversion is needed."""
    target = head.path
    if flag == FOLDER:
        found = [flag for name, flag in FOLDER_FLAGS.items() if (head.folder / name).exists()]
        if not found:
            return "get its whole folder, with config.json (or Meta's params.json) in it"
        flag, target = found[0], head.folder
    if place is PLACES["any"]:
        return f"name {_quoted(target)}"
    version = place.version
    if version is None and flag in FOLDER_FLAGS.values():
        version = 1  # it has fields for rope_theta and norm_eps
    words = f"{flag} {_quoted(target)}" + ("" if version is None else f" --version {version}")
    converts = f"`{advice.command('export')} out.bin {words}` converts it"
    runs = place is PLACES["model"] and flag in FOLDER_FLAGS.values() and target != head.path
    return f"name its folder, {_quoted(target)}; {converts}" if runs else converts


def _missing(path: StrPath, place: Place) -> str:
    """The suggestion for a file that does not exist."""
    if place.role in (STATE, OTHER):
        return ""
    if place.role == TOKENIZER:
        return advice.missing_tokenizer(path)
    return advice.missing_model(path, "llama2c" in place.reads)


def _tokenizer_beside(head: Head) -> str:
    """A tokenizer in the same folder that can be used; "" if there is none."""
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer.bin"):
        path = head.folder / name
        if path != head.path and kind_of(path) in PLACES["tokenizer"].reads:
            return _quoted(path)
    return ""


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
