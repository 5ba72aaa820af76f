"""The lines of text files, one at a time: a file may be larger than the memory."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator

from llama2np.files import open_regular

StrPath = str | os.PathLike[str]

LONGEST = 2**22  # bytes of a line that are in memory at a time
_BOM = "\ufeff"  # the byte order mark, with which Windows programs begin UTF-8


def pieces(path: StrPath) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, text) of each line, with its line feed; a long line comes in pieces.

    A byte order mark is left out, and CRLF becomes a line feed. Raises ValueError for a file that
    is not UTF-8, and OSError.
    """
    decoder, number = codecs.getincrementaldecoder("utf-8")(), 1
    with open_regular(path) as file:
        while True:
            data = file.readline(LONGEST)
            if len(data) == LONGEST and data.endswith(b"\r"):
                data += file.readline(1)  # perhaps the line feed of a CRLF
            try:
                text = decoder.decode(data, final=len(data) < LONGEST)
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                raise ValueError(
                    f"{path}: expected UTF-8, found byte 0x{byte:02x} in line {number}"
                ) from None
            if not data:
                return
            if text.endswith("\r\n"):
                text = text[:-2] + "\n"
            yield number, text.removeprefix(_BOM) if number == 1 else text
            number += data.endswith(b"\n")


def lines(path: StrPath) -> Iterator[tuple[int, str]]:
    """The same for a file in which each line has to fit into LONGEST bytes, else ValueError."""
    before = 0
    for number, text in pieces(path):
        if number == before:
            raise ValueError(
                f"{path}: line {number}: longer than {LONGEST:,} bytes, the maximum here"
            )
        yield number, text
        before = number
