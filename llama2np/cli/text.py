"""Text that is read from files and from standard input, whatever system wrote it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

_BOM = "\ufeff"  # the byte order mark, which Windows programs put before UTF-8


def plain(pieces: Iterable[str]) -> Iterator[str]:
    r"""The pieces of a text, without a byte order mark before it, and its lines ending in "\n"."""
    held, begun = "", False
    for piece in pieces:
        text = held + piece
        if text and not begun:
            text, begun = text.removeprefix(_BOM), True
        held = "\r" if text.endswith("\r") else ""  # a "\n" may follow
        yield text.removesuffix(held).replace("\r\n", "\n")
    yield held


def plain_line(line: str) -> str:
    r"""The same for one line that was read, given without its "\n"."""
    return "".join(plain([f"{line}\n"]))[:-1]
