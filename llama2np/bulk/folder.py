"""The folder of a run: what the run is, and its answers, a file for each chunk of prompts.

    run.json                     the task, its options, the model, the prompts' checksums
    answers/0000-a-0000000001.jsonl    the answers to a chunk, complete: written last, renamed once
    errors/0000-a-0000000001.jsonl     its lines that have no answer, if there are any

A chunk is done when its file of answers exists. So a run that is killed at any moment goes on with
the chunks that have none.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from llama2np.atomic import replacing_all, write_file
from llama2np.bulk.opened import Done
from llama2np.files import open_regular, read_at_most
from llama2np.jsonl import encoded
from llama2np.output import brief

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_RECORD, _LARGEST_RECORD = "run.json", 2**26
_FIELDS = {"chunk": int, "drawn": int, "options": dict, "prompts": list}
_LOCK = ".lock"  # an open file can be locked on network file systems, too; a folder cannot
_ENDING = ".jsonl"


class Folder:
    """A folder of answers, which one process at a time writes.

    Raises ValueError for a folder with other things in it, and OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.answers, self.errors = path, path / "answers", path / "errors"
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path}: is a file, expected a folder for the answers")
        others = path.is_dir() and any(each.name != _LOCK for each in path.iterdir())
        if others and not (path / _RECORD).is_file():
            raise ValueError(
                f"{path}: is not empty, and not the folder of an earlier run: name another output"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder, and keep other processes from writing it, in the block.

        If no run begins in the block, no new folder is left.
        """
        new = not self.path.exists()
        self.path.mkdir(exist_ok=True)
        with open(self.path / _LOCK, "ab") as lock:
            self._lock(lock)
            try:
                for unfinished in self.path.rglob("*.part"):  # of a process that was killed
                    unfinished.unlink()
                yield
            finally:
                with suppress(OSError):
                    if not (self.path / _RECORD).exists():
                        (self.path / _LOCK).unlink()
                        if new:
                            self.path.rmdir()

    def _lock(self, lock: BinaryIO) -> None:
        """Lock a file. File systems without locks are used without them. Raises OSError."""
        if fcntl is None:
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                text = "another process is writing it"
                raise OSError(error.errno, text, os.fspath(self.path)) from None

    def record(self) -> dict[str, Any] | None:
        """What run.json says; None before a run has begun. Raises ValueError, and OSError."""
        path = self.path / _RECORD
        if not path.exists():
            return None
        with open_regular(path) as file:
            data = read_at_most(file, _LARGEST_RECORD)
        try:
            record = json.loads(data or b"")
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not all(
            isinstance(record.get(name), kind) for name, kind in _FIELDS.items()
        ):
            raise ValueError(f"{path}: not the record of a run: name another output")
        return record

    def begin(self, record: Mapping[str, Any]) -> None:
        """Write run.json, which makes this a folder of a run. Raises OSError."""
        write_file(self.path / _RECORD, json.dumps(record, indent=1).encode() + b"\n")

    def make(self) -> None:
        """Make the folders for answers and errors. Raises OSError."""
        for folder in (self.answers, self.errors):
            folder.mkdir(exist_ok=True)

    def done(self) -> set[str]:
        """The names of the chunks that have answers."""
        if not self.answers.is_dir():
            return set()
        with os.scandir(self.answers) as entries:
            names = {entry.name for entry in entries}
        return {name.removesuffix(_ENDING) for name in names if name.endswith(_ENDING)}

    def unanswered(self) -> int:
        """The number of lines in done chunks that have no answer."""
        return sum(_count(path) for path in self.errors.glob(f"*{_ENDING}"))

    def write(self, name: str, file: str, done: Done) -> None:
        """Write the answers to a chunk of a file, all or nothing. Raises OSError."""
        answers = self.answers / f"{name}{_ENDING}"
        if not done.errors:
            write_file(answers, done.answers)
            return
        records = [{"file": file, "line": line, "error": text} for line, text in done.errors]
        lines = b"".join(map(encoded, records))
        errors = self.errors / f"{name}{_ENDING}"
        with replacing_all({errors: len(lines), answers: len(done.answers)}) as (first, second):
            first.write(lines)
            second.write(done.answers)


def check_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ValueError if a run was begun with something else than now: it names the difference."""
    end = "name another output, or go on with what it was begun with"
    for key in ("llama2np", "task", "engine", "tokenizer", "model"):
        if key in now and before.get(key) != now[key]:
            told = _told(key, before.get(key), now[key])
            raise ValueError(f"{folder}: was begun with {told}: {end}")
    old, new = before.get("options") or {}, now["options"]
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            told = f"{name} {_value(old.get(name))}, now it is {_value(new.get(name))}"
            raise ValueError(f"{folder}: was begun with {told}: {end}")
    _check_prompts(folder, before.get("prompts") or [], now["prompts"], end)


def _check_prompts(
    folder: Path, before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]], end: str
) -> None:
    if len(before) != len(now):
        count = f"{len(before)} files of prompts, now there are {len(now)}"
        raise ValueError(f"{folder}: was begun with {count}: {end}")
    for old, new in zip(before, now, strict=True):
        if old != new:
            before_it = old.get("name") if isinstance(old, dict) else None
            same = "other content" if before_it == new["name"] else before_it
            raise ValueError(f"{new['name']}: {folder} was begun with {same} in its place: {end}")


def _told(key: str, before: Any, now: Any) -> str:
    if key == "model":
        return "another model"
    name = {"llama2np": "llama2np", "task": "the task"}.get(key, key)
    return f"{name} {_value(before)}, now it is {_value(now)}"


def _value(value: Any) -> str:
    return "by default" if value is None else value if isinstance(value, str) else brief(value)


def _count(path: Path) -> int:
    with suppress(OSError), open(path, "rb") as file:
        return sum(1 for _ in file)
    return 0
