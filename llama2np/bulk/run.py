"""A run over files of prompts: which chunks are to be done, and where their answers go."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llama2np.bulk.files import Chunk, Ids, PromptFile, scan
from llama2np.bulk.folder import Folder, check_same
from llama2np.bulk.opened import Done, answer_lines
from llama2np.bulk.tasks import Job

CHUNK = 256  # lines of a chunk, if there are enough for all workers
_CHUNKS_OF_A_WORKER = 2  # at least, so that a slow worker leaves some to the others

# The arguments of `answer_lines`, without the job.
Call = tuple[dict[str, Any], tuple[int, str], list[tuple[int, bytes]]]


@dataclass(frozen=True)
class Lost:
    """A chunk without answers, and why."""

    name: str
    file: str
    first: int
    last: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.first}-{self.last}: no answers: chunk {self.name} {self.reason}"


class Run:
    """Prompts, a folder, and what is done with them.

    Within `folder.locked()`: make a Run, then `begin`; give `calls` to workers, and their results
    to `write`. Raises ValueError if the folder was begun with something else, and OSError.
    """

    def __init__(
        self,
        job: Job,
        paths: Sequence[Path],
        folder: Folder,
        chunk: int | None = None,
        workers: int = 1,
    ) -> None:
        """chunk: lines of a chunk; by default it depends on the number of workers.

        An earlier run in this folder decides it, whatever is given.
        """
        self.folder = folder
        before = folder.record()
        ids = None if before else Ids()
        size = before["chunk"] if before else chunk or CHUNK
        self.files = scan(paths, size, ids)
        self.total = sum(chunk.prompts for chunk in self._chunks())
        if not before and not chunk:
            fair = max(-(-self.total // (workers * _CHUNKS_OF_A_WORKER)), 1)
            if fair < size:
                size, self.files = fair, scan(paths, fair)
        self.repeated = ids.repeated() if ids else []
        self.job = replace(job, drawn=before["drawn"] if before else _drawn(job))
        self._record = self._of(job, size)
        if before:
            check_same(folder.path, before, self._record)
        self._before = before
        self._done = folder.done()
        self.answered = sum(c.prompts for c in self._chunks() if c.name in self._done)
        self.bad = folder.unanswered()
        self._model: dict[str, Any] = {}
        self._open: dict[str, Chunk] = {}

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return all(chunk.name in self._done for chunk in self._chunks())

    def begin(self, model: dict[str, Any]) -> None:
        """Note what the run is. model: its fingerprint. Raises ValueError if another one began."""
        self._model = model
        record = {**self._record, "drawn": self.job.drawn, "model": model}
        if self._before:
            check_same(self.folder.path, self._before, record)
        else:
            self.folder.begin({**record, "path": self.job.model})
        self.folder.make()

    def check(self, model: dict[str, Any]) -> None:
        """Raise ValueError if the answers are those of another model. model: its fingerprint."""
        if self._before:
            check_same(self.folder.path, self._before, {**self._record, "model": model})

    def calls(self) -> Iterator[tuple[str, Call]]:
        """(name of a chunk, call) for each chunk that is not done. Raises OSError.

        The lines are read when a call is taken from the iterator.
        """
        for chunk in self._chunks():
            if chunk.name not in self._done:
                file = self.files[chunk.file]
                self._open[chunk.name] = chunk
                lines = file.lines(chunk)
                yield chunk.name, (self._model, (chunk.file, file.path.name), lines)

    def write(self, name: str, done: Done) -> list[str]:
        """Write the answers to a chunk; return its bad lines, for messages. Raises OSError."""
        chunk = self._open.pop(name)
        if done.prompts != chunk.prompts:
            path = self.files[chunk.file].path
            raise ValueError(f"{path}: has changed while it was read")
        self.folder.write(name, self.files[chunk.file].path.name, done)
        self._done.add(name)
        self.answered += chunk.prompts
        self.bad += len(done.errors)
        return [f"{self.where(chunk.file, line)}: {error}" for line, error in done.errors]

    def lost(self, name: str, reason: str) -> Lost:
        """A chunk that cannot be answered."""
        chunk = self._open.pop(name)
        last = chunk.first + chunk.lines - 1
        return Lost(name, str(self.files[chunk.file].path), chunk.first, last, reason)

    def where(self, file: int, line: int) -> str:
        """The place of a line, for a message."""
        return f"{self.files[file].path}:{line}"

    def _chunks(self) -> Iterator[Chunk]:
        return (chunk for file in self.files for chunk in file.chunks)

    def _of(self, job: Job, chunk: int) -> dict[str, Any]:
        return {
            "llama2np": job.version,
            "task": job.task,
            "engine": job.engine,
            "options": _plain(job.options),
            "chunk": chunk,
            "prompts": [_described(file) for file in self.files],
        }


def in_this_process(job: Job, calls: Iterable[tuple[str, Call]]) -> Iterator[tuple[str, Done]]:
    """Do the calls one after the other, without any workers. Raises JobError."""
    for name, call in calls:
        yield name, answer_lines(job, *call)


def _described(file: PromptFile) -> dict[str, Any]:
    return {"name": file.path.name, "bytes": file.size, "blake2b": file.blake2b}


def _plain(options: Any) -> Any:
    """Options as JSON gives them back: its keys are texts, and tuples are lists."""
    if isinstance(options, dict):
        return {str(key): _plain(value) for key, value in options.items()}
    if isinstance(options, list | tuple):
        return [_plain(value) for value in options]
    return options


def _drawn(job: Job) -> int:
    return job.drawn or int.from_bytes(os.urandom(6), "big") | 1
