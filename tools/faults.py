"""Failures of writing, and damaged files of compiled kernels: no incomplete file may be left.

A file is written by system calls. `failing` makes the n-th of them fail: the tests try every n if
they have the time, the fuzzer tries some.
"""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from unittest.mock import patch

from llama2np import atomic
from llama2np.formats import llama2c, tokenizer_bin
from llama2np.formats.checkpoint import load
from llama2np.formats.write import write_bin, write_huggingface
from llama2np.kernels.runtime import sealed
from llama2np.model.transformer import State, Transformer
from tools.scratch import written

WRITERS = ("export 0", "export 1", "export 2", "export -1", "tokenizer", "state")
ERRORS = ("ENOSPC", "EIO", "EACCES", "interrupt", "interrupt after")
_CALLS = ("open", "fsync", "replace", "link", "fchmod", "fchown", "unlink")


@dataclass
class Fault:
    """The `at`-th writing call, from 0 on, fails with an errno, or with Ctrl-C before or after it.

    over: whether the target exists already.
    """

    writer: str
    at: int = 10**9
    error: str = "EIO"
    over: bool = True


class _Counter:
    def __init__(self, fault: Fault) -> None:
        self.fault, self.calls = fault, 0

    def wrapped(self, call: Callable) -> Callable:
        def counted(*arguments, **options):
            self.calls += 1
            if self.calls - 1 != self.fault.at:
                return call(*arguments, **options)
            if self.fault.error == "interrupt after":
                made = call(*arguments, **options)
                if isinstance(made, io.IOBase):
                    made.close()
            if self.fault.error.startswith("interrupt"):
                raise KeyboardInterrupt
            number = getattr(errno, self.fault.error)
            raise OSError(number, os.strerror(number))

        return counted


@contextmanager
def failing(fault: Fault) -> Iterator[_Counter]:
    """Make a call in the block fail. The counter has the number of calls."""
    counter = _Counter(fault)

    class Raw(io.FileIO):
        def write(self, data):
            return counter.wrapped(super().write)(data)

    def opened(path, mode, opener=None):
        return io.BufferedWriter(counter.wrapped(Raw)(path, mode, opener=opener))

    class System:
        """The module os, with calls that are counted."""

        def __getattr__(self, name):
            found = getattr(os, name)
            return counter.wrapped(found) if name in _CALLS else found

    with patch.object(atomic, "os", System()), patch.object(atomic, "open", opened, create=True):
        yield counter


def check_write(fault: Fault, folder: Path) -> bool:
    """Write with a fault, from a folder with model.bin and tokenizer.model.

    The same folder serves for other faults of this writer. Return whether the fault occurred.
    Raises AssertionError unless the target is then unchanged, or complete, and there is no other
    file.
    """
    write = _writer(fault.writer, folder)
    whole, place = folder / "whole", folder / f"target {fault.at}"
    place.mkdir()
    if not whole.exists():
        whole.mkdir()
        write(whole / "x")
    if fault.over and fault.writer == "export -1":
        (place / "x").mkdir()
        for name in ("config.json", "model.safetensors"):
            (place / "x" / name).write_bytes(b"old")
    elif fault.over:
        (place / "x").write_bytes(b"old")
    before, complete, failed = _content(place), _content(whole), None
    with failing(fault) as counter:
        try:
            write(place / "x")
        except (OSError, KeyboardInterrupt) as error:
            failed = error
    after = _content(place)
    assert after == complete or (failed and after == before), f"{failed!r}, left: {sorted(after)}"
    if isinstance(failed, OSError):
        assert ".part" not in str(failed) and str(place) in str(failed), f"it says {failed}"
    return fault.at < counter.calls


def _writer(name: str, folder: Path) -> Callable[[Path], object]:
    kind, _, version = name.partition(" ")
    if kind == "tokenizer":
        return lambda path: tokenizer_bin.write_bin(folder / "tokenizer.model", path)
    if kind == "state":
        model = Transformer(*load(folder / "model.bin"))
        state = State(model.config)
        model.forward([1, 2, 3], state)
        return lambda path: state.save(path)
    source = llama2c.read_bin(folder / "model.bin")
    if version == "-1":
        return lambda path: write_huggingface(source, path)
    return lambda path: write_bin(source, path, int(version))


def _content(path: Path) -> dict[str, bytes | None]:
    """The content of a path by relative names: the bytes of files, None for folders."""
    return {
        str(each.relative_to(path)): each.read_bytes() if each.is_file() else None
        for each in (path, *path.rglob("*"))
    }


# For the fuzzer


def write_fault(random: Random | None = None) -> bytes:
    """The file fault.json of a case: a random fault, or one that never occurs."""
    fault = Fault("export 1")
    if random:
        fault = Fault(
            random.choice(WRITERS),
            random.choice((random.randrange(10), random.randrange(60))),
            random.choice(ERRORS),
            random.random() < 0.5,
        )
    return json.dumps(asdict(fault)).encode()


def exercise_write(folder: Path) -> None:
    """Write with the fault of a case."""
    check_write(Fault(**json.loads((folder / "fault.json").read_bytes())), folder)


_KEY, _CODE = b"k" * 32, bytes(range(256)) * 8


def sealed_file() -> bytes:
    """A file that the cache of kernels writes."""
    return written(lambda path: sealed.write(path, _KEY, _CODE))


def exercise_cache(folder: Path) -> None:
    """Read a file of the cache: it has the data that was written, or it is removed."""
    path = folder / "kernel.nbc"
    found = sealed.read(path, _KEY)
    assert found == _CODE if path.exists() else found is None
    sealed.write(path, _KEY, _CODE)
    assert sealed.read(path, _KEY) == _CODE
