"""Files of JSON lines: prompts to read, and answers that are appended, each line once and whole.

After a kill at any moment, the file of answers has whole lines, and perhaps a beginning of one at
its end, which the next run removes.
"""

from __future__ import annotations

import codecs
import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from llama2np.files import open_regular

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LONGEST_LINE = 2**22  # bytes
_START = b'{"line": '  # of each answer


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not empty, with their numbers from 1. Raises OSError.

    A line longer than LONGEST_LINE comes cut, with one byte more than that.
    """
    with open_regular(path) as file:
        for number, line in enumerate(all_lines(file), 1):
            if line.strip():
                yield number, line


def all_lines(file: BinaryIO, seen: Callable[[bytes], object] = len) -> Iterator[bytes]:
    """The lines from the position of an open file on, cut as those of `lines`.

    seen: called with all bytes of a line, in pieces, before the line is yielded. Raises OSError.
    """
    while line := file.readline(LONGEST_LINE + 1):
        seen(line)
        rest = line
        while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST_LINE + 1)
            seen(rest)
        yield line


def parsed(line: bytes) -> Any:
    """The value of a line. Raises ValueError with what is wrong."""
    if len(line) > LONGEST_LINE:
        raise ValueError(f"longer than {LONGEST_LINE:,} bytes, the maximum here")
    line = line.removeprefix(codecs.BOM_UTF8)  # Windows programs begin a file with it
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(
            f"expected UTF-8, found byte 0x{line[error.start]:02x} at byte {error.start}"
        ) from None
    except RecursionError:
        raise ValueError("JSON with too many levels") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None


def encoded(answer: dict[str, Any]) -> bytes:
    """The line of a JSON object."""
    try:
        return json.dumps(answer, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can express
        return json.dumps(answer).encode() + b"\n"


class Answers:
    """The file of answers, open for appending. It begins with the answers of an earlier run.

    answered: the line numbers that have an answer, each with what it was an answer to. Raises
    ValueError for a file that this class did not write, and OSError, also if another process has
    the file open here.
    """

    def __init__(self, path: Path):
        self._path = path
        if path.exists():
            open_regular(path).close()  # refuses devices and folders
        self._file = open(path, "ab+", buffering=0)
        try:
            self._lock()
            self.answered, end = self._read()
            self._file.truncate(end)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            os.fsync(self._file.fileno())

    def append(self, line: int, answer: dict[str, Any]) -> None:
        """Append an answer to the prompt of a line. Raises OSError; then nothing is appended."""
        data = encoded({"line": line, **answer})
        end = self._file.seek(0, os.SEEK_END)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except BaseException as error:
            self._file.truncate(end)
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror, os.fspath(self._path)) from None
            raise

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                text = "another process is writing it"
                raise OSError(error.errno, text, os.fspath(self._path)) from None

    def _read(self) -> tuple[dict[int, Any], int]:
        """The answers in the file, and where the last whole line ends."""
        answered: dict[int, Any] = {}
        end = 0
        self._file.seek(0)
        with open(self._path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n") and _START.startswith(line[: len(_START)]):
                    break  # a run was killed while it wrote this one
                answer = self._answer(number, line)
                answered[answer["line"]] = answer.get("prompt")
                end += len(line)
        return answered, end

    def _answer(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(line) if line.startswith(_START) else None
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict) or not isinstance(answer.get("line"), int):
            raise ValueError(
                f"{self._path}:{number}: not an answer of an earlier run: name another output"
            )
        return answer
