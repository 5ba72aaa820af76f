"""The models that this process has open, and the answers to a chunk of prompts. Knows no Dask."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from llama2np import __version__
from llama2np.bulk.prompts import Prompt
from llama2np.bulk.tasks import TASKS, Answer, Asked, Job, Task
from llama2np.jsonl import encoded
from llama2np.output import printable
from llama2np.store.names import located

_KEPT = 4  # models that stay open; the oldest makes room
_SUFFIXES = {".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".gguf", ".pt", ".pth"}
_SMALL, _SAMPLES, _SAMPLE = 2**26, 64, 2**16  # bytes, count, bytes: see `fingerprint`


class JobError(ValueError):
    """A reason why no prompt of a job can be answered. The text is one line."""


@dataclass(frozen=True)
class Done:
    """The answers to a chunk: lines of JSON, and (line, what is wrong) for those without one."""

    answers: bytes
    errors: list[tuple[int, str]]
    prompts: int


class Models:
    """Open models. Several threads may ask for one; it is opened once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[object, tuple[Task, dict[str, Any]]] = {}

    def task(self, job: Job) -> tuple[Task, dict[str, Any]]:
        """The task with its model open, and the fingerprint of the model.

        Raises JobError for another version of llama2np, for a model that cannot be opened, and for
        options that the task does not have.
        """
        if job.version != __version__:
            raise JobError(f"llama2np {__version__} here, {job.version} where the run was started")
        _set_threads(job)
        try:
            path = located(job.model)
            if not os.path.exists(path):
                TASKS[job.task](job)  # its error suggests what may be meant
            files = _files(path)
            stamp = tuple((path, s.st_size, s.st_mtime_ns) for path, s in files)
            key = job.task, job.model, job.tokenizer, job.engine, stamp
            with self._lock:
                if key not in self._open:
                    task = TASKS[job.task](job)
                    if len(self._open) >= _KEPT:
                        self._open.pop(next(iter(self._open)))
                    self._open[key] = task, fingerprint(files, task)
                task, found = self._open[key]
            return task, found
        except (ValueError, OSError, ImportError) as error:
            raise JobError(one_line(error)) from None

    def close(self) -> None:
        """Forget all models."""
        with self._lock:
            self._open.clear()


HERE = Models()


def describe(job: Job, models: Models = HERE) -> dict[str, Any]:
    """The fingerprint of the model, if the job can be done. Raises JobError."""
    task, found = models.task(job)
    try:
        task.check(job)
    except (ValueError, TypeError) as error:
        raise JobError(one_line(error)) from None
    return found


def answers(
    job: Job, model: dict[str, Any], asked: Sequence[Asked], models: Models = HERE
) -> list[Answer]:
    """The answer, or the error, of each prompt. model: the fingerprint that it must have.

    Raises JobError.
    """
    task, found = models.task(job)
    if found != model:
        raise JobError(f"{job.model}: is another model here than where the run began")
    return task.answers(job, asked)


def answer_lines(
    job: Job,
    model: dict[str, Any],
    file: tuple[int, str],
    lines: Iterable[tuple[int, bytes]],
    models: Models = HERE,
) -> Done:
    """The answers to lines of a file, which are (number, data). file: its number and name.

    Raises JobError.
    """
    number, name = file
    asked: list[Asked] = []
    at: list[int] = []
    for line, data in lines:
        prompt: Prompt | Exception
        try:
            prompt = Prompt.of_line(data)
        except (ValueError, TypeError) as error:
            prompt = error
        asked.append(((number, line), prompt))
        at.append(line)
    written, errors = bytearray(), list[tuple[int, str]]()
    for line, answer in zip(at, answers(job, model, asked, models), strict=True):
        if isinstance(answer, Exception):
            errors.append((line, one_line(answer)))
        else:
            written += encoded({"file": name, "line": line} | answer)
    return Done(bytes(written), errors, len(at))


def one_line(error: Exception) -> str:
    """The text of an error, in one line."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    return printable(" ".join(text.split()))


def _set_threads(job: Job) -> None:
    """Let the kernels that this thread calls use as many threads as the job says."""
    if job.engine == "compiled" and job.threads is not None:
        from llama2np import kernels  # here, because the NumPy engine needs no numba

        kernels.set_threads(min(job.threads, kernels.max_threads()))


def _files(path: str | os.PathLike[str]) -> list[tuple[Path, os.stat_result]]:
    """The files of a model, sorted by name. Raises OSError if there are none."""
    path = Path(path)
    files = [path]
    if path.is_dir():
        inside = [*path.iterdir(), *path.glob("*/config.json")]  # of sentence-transformers
        files = sorted(p for p in inside if p.suffix in _SUFFIXES and p.is_file())
    return [(file, file.stat()) for file in files]


def fingerprint(files: Sequence[tuple[Path, os.stat_result]], task: Task) -> dict[str, Any]:
    """What must be equal where a run goes on, and on each worker: {"bytes", "blake2b", "pieces"}.

    blake2b is over the names' endings, the sizes and the contents of the files; in files of more
    than 64 MiB it reads 64 samples of 64 KiB, evenly apart. pieces is that of the vocabulary.
    """
    digest, total = blake2b(digest_size=16), 0
    for path, stat in files:
        digest.update(f"{path.name if len(files) > 1 else ''} {stat.st_size}\n".encode())
        total += stat.st_size
        with open(path, "rb") as file:
            if stat.st_size <= _SMALL:
                digest.update(file.read())
                continue
            for i in range(_SAMPLES):
                file.seek(i * (stat.st_size - _SAMPLE) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    pieces = blake2b(digest_size=16)
    for piece in task.tokenizer.pieces if task.tokenizer else ():
        pieces.update(len(piece).to_bytes(4, "big") + piece)
    return {"bytes": total, "blake2b": digest.hexdigest(), "pieces": pieces.hexdigest()}
