"""Decoders of a tokenizer.json: the table of what is shown for each token.

A decoder is a change of a list of pieces. Those in use change each piece alone, or the first one in
another way than the others. So they become a table, from which a stream is decoded (decoder.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from llama2np.output import brief
from llama2np.text.byte_letters import to_bytes
from llama2np.text.decoder import Shown
from llama2np.text.errors import TokenizerError
from llama2np.text.fields import Fields
from llama2np.text.parts import pattern_of, sequence, unsupported

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# WordPiece's `cleanup`: the spaces that are removed again.
_CLEANUP = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"),
    (" 'm", "'m"), (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


class Rows:
    """A table that is being made: what is shown for each piece inside a text, and at its beginning.

    A row is a str until its bytes are known: a byte token is the bytes of a part of a character.
    """

    def __init__(self, pieces: list[str]):
        self.later: list[str | bytes] = list(pieces)
        self.first: list[str | bytes] = self.later
        self.fused = False  # whether the pieces are one text from here on
        self.until = "token"

    def change(self, text: Callable[[str], str | bytes]) -> None:
        """Change each piece, wherever it is."""
        same = self.first is self.later
        self.change_later(text)
        if same:  # as always but after the last step: it saves half the time of a large vocabulary
            self.first = self.later
        else:
            self.change_first(text)

    def change_first(self, text: Callable[[str], str | bytes]) -> None:
        self.first = [text(row) if isinstance(row, str) else row for row in self.first]

    def change_later(self, text: Callable[[str], str | bytes]) -> None:
        self.later = [text(row) if isinstance(row, str) else row for row in self.later]

    def strip_beginning(self, content: bytes) -> None:
        """Remove `content` once from the beginning of the text."""
        self.first = [_encoded(row).removeprefix(content) for row in self.first]
        self.until = "text"

    def done(self) -> Shown:
        later = [*map(_encoded, self.later)]
        first = later if self.first is self.later else [*map(_encoded, self.first)]
        return Shown(later, first, until=self.until)


def shown(fields: Fields | None, pieces: list[str]) -> Shown:
    """The table of the decoder that these fields describe. Raises TokenizerError.

    Without a decoder, there is a space between pieces.
    """
    rows = Rows(pieces)
    if fields is None:
        rows.change_later(lambda piece: f" {piece}")
    else:
        _apply(fields, rows, 0)
    return rows.done()


def byte_level(pieces: list[str]) -> Shown:
    """Byte-level BPE's table: the bytes of each piece."""
    rows = Rows(pieces)
    rows.change(to_bytes)
    return rows.done()


def word_piece(pieces: list[str], prefix: str = "##", cleanup: bool = True) -> Shown:
    """BERT's table: a space before each word but the first, and none before punctuation."""
    rows = Rows(pieces)
    rows.change_later(
        lambda piece: piece.replace(prefix, "", 1) if piece.startswith(prefix) else f" {piece}"
    )
    if cleanup:
        rows.change(_clean)
    return rows.done()


def sentencepiece(pieces: list[str], mark: str = "▁", strip: bool = True) -> Shown:
    """sentencepiece's table: `mark` is a space, "<0x41>" a byte; strip: none at the beginning."""
    rows = Rows(pieces)
    rows.change(lambda piece: piece.replace(mark, " "))
    rows.change(_byte)
    if strip:
        rows.strip_beginning(b" ")
    return rows.done()


def _apply(fields: Fields, rows: Rows, depth: int) -> None:
    kind = fields.text("type")
    if kind == "Sequence":
        for one in sequence(fields, "decoders", depth):
            _apply(one, rows, depth + 1)
    elif kind == "ByteLevel":
        rows.change(to_bytes)
    elif kind == "Fuse":
        rows.fused = True
    elif kind == "ByteFallback":
        rows.change(_byte)
    elif kind == "Replace":
        _replace(fields, rows)
    elif kind == "Strip":
        _strip(fields, rows)
    elif kind == "Metaspace":
        _metaspace(fields, rows)
    elif kind == "WordPiece":
        made = word_piece(
            [str(row) for row in rows.later],
            fields.text("prefix", "##"),
            fields.flag("cleanup", True),
        )
        rows.later, rows.first = [*made.texts], [*made.first_texts]
    else:
        raise unsupported(fields, "decoder", kind, _TYPES)


_TYPES = ("ByteLevel", "Fuse", "ByteFallback", "Replace", "Strip", "Metaspace", "WordPiece")


def _replace(fields: Fields, rows: Rows) -> None:
    pattern, content = pattern_of(fields), fields.text("content")
    if isinstance(pattern, str):
        rows.change(lambda piece: piece.replace(pattern, content) if pattern else piece)
    else:
        rows.change(lambda piece: pattern.replaced(piece, content))


def _strip(fields: Fields, rows: Rows) -> None:
    content = fields.text("content", " ")
    start, stop = fields.whole("start", 0), fields.whole("stop", 0)
    if stop or start > 1:
        raise TokenizerError(
            f"{fields.where}: strips {start} before and {stop} after, expected at most 1 before"
        )
    if start and rows.fused:
        rows.strip_beginning(content.encode())
    elif start:
        rows.change(lambda piece: piece.removeprefix(content))


def _metaspace(fields: Fields, rows: Rows) -> None:
    mark = fields.text("replacement", "▁")
    old = "always" if fields.flag("add_prefix_space", True) else "never"
    if (scheme := fields.text("prepend_scheme", old)) not in ("always", "first", "never"):
        raise TokenizerError(
            f"{fields.where}: prepend_scheme is {brief(scheme)}, expected always, first or never"
        )
    rows.change_first(lambda piece: piece.replace(mark, " " if scheme == "never" else ""))
    rows.change_later(lambda piece: piece.replace(mark, " "))


def _byte(piece: str) -> str | bytes:
    match = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(match[1], 16)]) if match else piece


def _clean(piece: str) -> str:
    for found, better in _CLEANUP:
        piece = piece.replace(found, better)
    return piece


def _encoded(row: str | bytes) -> bytes:
    return row.encode() if isinstance(row, str) else row
