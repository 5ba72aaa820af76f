"""tokenizer.bin: llama2.c's file, and its algorithm, the byte-pair encoding of sentencepiece."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from pathlib import Path

from llama2np.output import brief
from llama2np.text.bpe import merge
from llama2np.text.decoder import Shown
from llama2np.text.errors import TokenizerError
from llama2np.text.models import MAX_PIECES
from llama2np.text.post_processors import Template
from llama2np.text.special_tokens import AddedToken, Finder

BOS, EOS = 1, 2  # the ids of <s> and </s>, in every tokenizer.bin
LOWEST_SCORE = -1e10  # run.c merges pairs with a higher score
LONGEST_PIECE = 2048  # bytes: sentencepiece trains pieces of up to 512 characters
_UNKNOWN = 0
_FIRST_BYTE = 3  # <0x00> ... <0xFF> follow the three special pieces
_BYTE_PIECE = re.compile(rb"<0x([0-9A-Fa-f]{2})>")


class Llama2cBPE:
    """A vocabulary in llama2.c's layout: BOS is 1, EOS is 2, the bytes begin at 3.

    `encode` gives run.c's tokens, in O(n log n).
    """

    like_llama2c = True
    template = Template.around([BOS])
    added = (AddedToken(BOS, "<s>"), AddedToken(EOS, "</s>"))

    def __init__(self, pieces: Iterable[bytes], scores: Iterable[float]):
        self.pieces, self.scores = list(pieces), list(scores)
        if len(self.pieces) != len(self.scores):
            raise ValueError(f"{len(self.pieces)} pieces but {len(self.scores)} scores")
        self._ids: dict[bytes, int] = {}
        for i, piece in enumerate(self.pieces):
            self._ids.setdefault(piece, i)
        self._finder = Finder(self.added)
        texts = [_spelled(piece) for piece in self.pieces]
        for special in (BOS, EOS):
            texts[special : special + 1] = [b""] if special < len(texts) else []
        self.shown = Shown(texts, texts, strips=True, begins=False, again=True)

    def encode(self, text: str, special: bool | None = None) -> list[int]:
        """run.c's tokens, without BOS. special: "<s>" and "</s>" in a text are those tokens."""
        tokens: list[int] = []
        for part, token in self._finder.split(text) if special else [(text, None)]:
            tokens += [token] if token is not None else self._encode(part)
        return tokens

    def _encode(self, text: str) -> list[int]:
        tokens = []
        if text:
            for character in " " + text:
                tokens += self._character(character.encode())
        return merge(tokens, self._join)

    def _character(self, character: bytes) -> list[int]:
        token = self._ids.get(character)
        if token is not None:
            return [token]
        if len(self.pieces) < _FIRST_BYTE + 256:  # there are no byte pieces
            return [_UNKNOWN]
        return [_FIRST_BYTE + byte for byte in character]

    def _join(self, a: int, b: int) -> tuple[float, int] | None:
        joined = self._ids.get(self.pieces[a] + self.pieces[b])
        if joined is None or not self.scores[joined] > LOWEST_SCORE:
            return None
        return -self.scores[joined], joined


def read(path: Path, data: bytes) -> Llama2cBPE:
    """Read a tokenizer.bin; data: its content. Raises TokenizerError."""
    algorithm = Llama2cBPE(*_read_bin(path, data))
    if problem := _misplaced(algorithm.pieces):
        raise TokenizerError(
            f"{path}: not in llama2.c's layout: {problem}; use the tokenizer.model it was made from"
        )
    return algorithm


def _read_bin(path: Path, data: bytes) -> tuple[list[bytes], list[float]]:
    """Read llama2.c's format: the uint32 length of the longest piece, then for each piece its
    float32 score, its int32 length, and its bytes.
    """
    if len(data) < 4:
        raise TokenizerError(f"{path}: not a tokenizer.bin: {len(data)} bytes, expected 4 or more")
    longest = min(struct.unpack_from("<I", data)[0], LONGEST_PIECE)
    pieces: list[bytes] = []
    scores: list[float] = []
    offset, unpack = 4, struct.Struct("<fi").unpack_from
    while offset < len(data) and len(pieces) <= MAX_PIECES:
        if offset + 8 > len(data):
            raise TokenizerError(f"{path}: ends in the middle of piece {len(pieces)}: truncated?")
        score, length = unpack(data, offset)
        if not 0 < length <= longest:
            raise TokenizerError(
                f"{path}: not a tokenizer.bin: piece {len(pieces)} claims {length} bytes, "
                f"expected 1 to {longest}"
            )
        offset += 8 + length
        if offset > len(data):
            raise TokenizerError(f"{path}: ends in the middle of piece {len(pieces)}: truncated?")
        pieces.append(data[offset - length : offset])
        scores.append(score)
    return pieces, scores


def _misplaced(pieces: list[bytes]) -> str:
    """A description of the first piece that is not at llama2.c's place for it; "" if all are.

    A vocabulary that is too small for byte pieces may have none.
    """
    for special, piece in ((BOS, b"\n<s>\n"), (EOS, b"\n</s>\n")):
        if piece in pieces and pieces[special] != piece:
            return f"{_named(piece)} is piece {pieces.index(piece)}, expected {special}"
    if len(pieces) < _FIRST_BYTE + 256 and not any(map(_BYTE_PIECE.fullmatch, pieces)):
        return ""
    for byte in range(256):
        piece = b"".join(pieces[_FIRST_BYTE + byte :][:1])
        if not _BYTE_PIECE.fullmatch(piece) or _spelled(piece) != bytes([byte]):
            return f"piece {_FIRST_BYTE + byte} is {_named(piece)}, expected <0x{byte:02X}>"
    return ""


def _spelled(piece: bytes) -> bytes:
    """The bytes that a piece represents: one byte for "<0x41>", otherwise the piece itself."""
    match = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(match[1], 16)]) if match else piece


def _named(piece: bytes) -> str:
    return brief(piece.decode("utf-8", "replace")) if piece else "missing"
