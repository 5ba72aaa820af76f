"""The letters in which byte-level BPE writes bytes (GPT-2's `bytes_to_unicode`).

A byte that Latin-1 prints is written as that character; the other 68 are written as U+0100 and on.
So a space is "Ġ" and a newline "Ċ".
"""

from __future__ import annotations


def _letters() -> list[str]:
    letters, others = [], 0
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or (0xA1 <= byte <= 0xFF and byte != 0xAD):
            letters.append(chr(byte))
        else:
            letters.append(chr(0x100 + others))
            others += 1
    return letters


LETTERS = _letters()


class _Bytes(dict[int, int]):
    """For str.translate: the byte of each letter, and U+0100 for any other character."""

    def __missing__(self, _: int) -> int:
        return 0x100


_BYTE_OF = _Bytes({ord(letter): byte for byte, letter in enumerate(LETTERS)})
_TO_LETTERS = {byte: letter for byte, letter in enumerate(LETTERS)}


def to_letters(text: str) -> str:
    """The UTF-8 of `text`, a letter for each byte."""
    return text.encode().decode("latin-1").translate(_TO_LETTERS)


def to_bytes(piece: str) -> bytes:
    """The bytes of a piece; its UTF-8, if it has a character that is not one of the letters."""
    try:
        return piece.translate(_BYTE_OF).encode("latin-1")
    except UnicodeEncodeError:
        return piece.encode()
