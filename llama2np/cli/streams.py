"""Standard streams of a command: all output is written, or the failure is reported."""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn, TextIO

_PATIENCE = 10.0  # seconds


class _Closed(io.StringIO):
    """Replaces a standard output that the shell has closed (`>&-`)."""

    def write(self, _text: str) -> NoReturn:
        raise ValueError("standard output is closed, nothing can be written to it")


@contextmanager
def standard_streams() -> Iterator[None]:
    """In the block, standard input, output and error exist, even if the shell closed one of them.

    Python sets a closed stream to None, and `print` then does nothing. Output that cannot be
    written when the block ends is dropped, since Python would try again at exit and end with
    status 120.
    """
    before = sys.stdin, sys.stdout, sys.stderr
    if None in before:
        _occupy()
    sys.stdin = sys.stdin or io.TextIOWrapper(io.BytesIO())
    sys.stdout = sys.stdout or _Closed()
    sys.stderr = sys.stderr or io.StringIO()
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            _drop_unwritten(stream)
        sys.stdin, sys.stdout, sys.stderr = before


def read_with_patience(limit: int) -> bytes:
    """Standard input, up to `limit` bytes and a few more, if its end may never come.

    Raises ValueError if nothing comes for some seconds, not even the end.
    """
    data = b""
    while len(data) < limit:
        if not select.select([sys.stdin], [], [], _PATIENCE)[0]:
            raise ValueError(
                f"standard input: no end for {_PATIENCE:g} s, since Open MPI's mpirun does not "
                'pass it on: write the text into the command, as in -i "$(cat FILE)", or use MPICH'
            )
        more = os.read(sys.stdin.fileno(), 2**16)
        if not more:
            break
        data += more
    return data


def _occupy() -> None:
    """Open descriptors 0 to 2. Otherwise the next file that is opened gets one of them, and with
    it what libraries print there.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def _drop_unwritten(stream: TextIO) -> None:
    """Empty the buffer of a stream that cannot be written; do not close or change the stream."""
    try:
        stream.flush()
        return
    except (OSError, ValueError):
        pass
    with suppress(OSError, ValueError):  # a stream without a file writes nothing at exit
        descriptor = stream.fileno()
        kept, nowhere = os.dup(descriptor), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, descriptor)
            stream.flush()
        finally:
            os.dup2(kept, descriptor)
            os.close(kept)
            os.close(nowhere)
