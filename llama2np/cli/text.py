"""Text from files and from standard input, of Unix or Windows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

_BOM = "\ufeff"  # the byte order mark, with which Windows programs begin UTF-8


def plain(pieces: Iterable[str]) -> Iterator[str]:
    r"""The pieces of a text, without a byte order mark before it, and with "\n" as newlines."""
    held, begun = "", False
    for piece in pieces:
        text = held + piece
        if text and not begun:
            text, begun = text.removeprefix(_BOM), True
        held = "\r" if text.endswith("\r") else ""  # the next piece may begin with "\n"
        yield text.removesuffix(held).replace("\r\n", "\n")
    yield held


def plain_line(line: str) -> str:
    r"""The same for one line without its "\n"."""
    return "".join(plain([f"{line}\n"]))[:-1]
