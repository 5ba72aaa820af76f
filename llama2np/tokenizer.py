"""Text to tokens and back: the byte-pair encoding of sentencepiece, as llama2.c runs it.

Reads llama2.c's tokenizer.bin, and sentencepiece's tokenizer.model. Special pieces in a text,
such as "<s>", are text. Left out: normalisation beyond the leading space, and training.
"""

from __future__ import annotations

import codecs
import os
import re
import struct
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from pathlib import Path

from llama2np import advice, kinds, sentencepiece_model
from llama2np.kinds.signs import is_sentencepiece, is_tokenizer_bin
from llama2np.output import printable

BOS, EOS = 1, 2  # the ids of <s> and </s>, in every llama2.c model
_UNKNOWN = 0
_FIRST_BYTE = 3  # <0x00> ... <0xFF> follow the three special pieces
_LOWEST_SCORE = -1e10  # run.c merges pairs that score more than this
_LARGEST = 2**26  # bytes of a file; that of 256 thousand pieces has a tenth
_BYTE_PIECE = re.compile(rb"<0x([0-9A-Fa-f]{2})>")


class TokenizerError(ValueError):
    """A tokenizer file that cannot be used: says which, what was expected and what was found."""

    def __init__(self, text: str):
        super().__init__(printable(text))


class Tokenizer:
    """A vocabulary: pieces of text as bytes, and the score of merging into each.

    A space is a space here, not sentencepiece's "▁".
    """

    def __init__(self, pieces: Iterable[bytes], scores: Iterable[float] | None = None):
        if scores is None or isinstance(pieces, (str, os.PathLike)):
            raise TypeError("Tokenizer() takes pieces and scores; Tokenizer.load opens a file")
        self.pieces = list(pieces)
        self.scores = list(scores)
        if len(self.pieces) != len(self.scores):
            raise ValueError(f"{len(self.pieces)} pieces but {len(self.scores)} scores")
        self._ids: dict[bytes, int] = {}
        for i, piece in enumerate(self.pieces):
            self._ids.setdefault(piece, i)
        self._texts = [_spelled(piece) for piece in self.pieces]
        for special in (BOS, EOS):
            if special < len(self._texts):
                self._texts[special] = b""

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size:,} pieces)"

    @property
    def vocab_size(self) -> int:
        """The number of pieces."""
        return len(self.pieces)

    @classmethod
    def load(cls, path: str | os.PathLike[str], vocab_size: int | None = None) -> Tokenizer:
        """Read a tokenizer.bin or a sentencepiece model; what it begins with tells which.

        With `vocab_size`, that of the model it will serve, any other number of pieces is refused.
        Raises TokenizerError, and OSError where the file cannot be read.
        """
        path = Path(path)
        with kinds.named(path, "tokenizer", TokenizerError):
            data = _contents(path)
            by_name = path.suffix == ".model" and not is_tokenizer_bin(data)
            read = _read_sentencepiece if by_name or is_sentencepiece(data) else _read_bin
            pieces, scores = read(path, data)
        if len(pieces) < 3:
            raise TokenizerError(f"{path}: holds {len(pieces)} pieces, expected 3 at the least")
        if vocab_size is not None and len(pieces) != vocab_size:
            raise TokenizerError(
                f"{path}: holds {len(pieces):,} pieces, the model's vocabulary is {vocab_size:,}: "
                "give the tokenizer the model was trained with (-z FILE); "
                f"Llama 2's, of 32,000: {advice.fetching('tokenizer.bin')}"
            )
        return cls(pieces, scores)

    def encode(self, text: str, bos: bool = True, eos: bool = False) -> list[int]:
        """Return the tokens of `text`, run.c's ones, in O(n log n).

        A space is put before any text but "". A character that is not in the vocabulary becomes
        the tokens of its UTF-8 bytes. Raises ValueError for text that UTF-8 cannot hold.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"not valid UTF-8 at character {error.start}: {text[error.start]!a}"
            ) from None
        tokens = [BOS] if bos else []
        if text:
            for character in " " + text:
                tokens += self._character(character.encode())
        tokens = self._merge(tokens)
        return tokens + [EOS] if eos else tokens

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of `tokens`. The space that follows BOS is dropped, as is BOS itself.

        Raises ValueError for a token that the vocabulary does not have.
        """
        decoder = Decoder(self)
        return "".join([decoder.feed(token) for token in tokens]) + decoder.flush()

    def _character(self, character: bytes) -> list[int]:
        token = self._ids.get(character)
        if token is not None:
            return [token]
        if self.vocab_size < _FIRST_BYTE + 256:  # no byte pieces to fall back to
            return [_UNKNOWN]
        return [_FIRST_BYTE + byte for byte in character]

    def _merge(self, tokens: list[int]) -> list[int]:
        """Join the best-scoring pair of neighbours, the leftmost of equals, until none joins.

        A heap holds the candidate pairs. One whose sides have changed since is passed over.
        """
        after = list(range(1, len(tokens) + 1))  # a linked list, because joining removes
        before = list(range(-1, len(tokens) - 1))
        tokens = [*tokens, -1]  # -1 ends the list, and stands where a token was joined away

        def candidate(left: int) -> tuple[float, int, int, int, int] | None:
            a, b = tokens[left], tokens[after[left]]
            joined = self._ids.get(self.pieces[a] + self.pieces[b]) if b >= 0 else None
            if joined is None or not self.scores[joined] > _LOWEST_SCORE:
                return None
            return -self.scores[joined], left, a, b, joined

        heap = [pair for left in range(len(tokens) - 1) if (pair := candidate(left))]
        heapify(heap)
        while heap:
            _, left, a, b, joined = heappop(heap)
            if tokens[left] != a or tokens[right := after[left]] != b:
                continue
            tokens[left], tokens[right] = joined, -1
            after[left] = after[right]
            if after[left] < len(before):
                before[after[left]] = left
            for neighbour in (before[left], left):
                if neighbour >= 0 and (pair := candidate(neighbour)):
                    heappush(heap, pair)
        return [token for token in tokens if token >= 0]


class Decoder:
    """Tokens to text as they come: a character split over tokens appears with the last of them.

    `previous` is the token before the first one, where there is one. Bytes that are not UTF-8
    become U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer, previous: int | None = None):
        self._tokenizer = tokenizer
        self._previous = previous
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """The text that `token` completes; "" in the middle of a character.

        Raises ValueError for a token that the vocabulary does not have.
        """
        if not 0 <= token < self._tokenizer.vocab_size:
            most = self._tokenizer.vocab_size - 1
            raise ValueError(f"token {token} is not in the vocabulary of 0 to {most}")
        text = self._tokenizer._texts[token]
        if self._previous == BOS and text.startswith(b" "):
            text = text[1:]  # the space that encode put there
        self._previous = token
        return self._utf8.decode(text)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character."""
        return self._utf8.decode(b"", final=True)


def _spelled(piece: bytes) -> bytes:
    """The bytes that a piece stands for: one byte for "<0x41>", itself otherwise."""
    match = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(match[1], 16)]) if match else piece


def _contents(path: Path) -> bytes:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > _LARGEST:  # a model given for a tokenizer would fill the memory
            raise TokenizerError(
                f"{path}: no tokenizer: it has {size:,} bytes, expected at most {_LARGEST:,}"
            )
        return file.read()


def _read_bin(path: Path, data: bytes) -> tuple[list[bytes], list[float]]:
    """llama2.c's format: uint32 longest piece; then for each float32 score, int32 length, bytes."""
    if len(data) < 4:
        raise TokenizerError(f"{path}: not a tokenizer.bin: {len(data)} bytes, expected 4 at least")
    longest = struct.unpack_from("<I", data)[0]
    pieces: list[bytes] = []
    scores: list[float] = []
    offset = 4
    while offset < len(data):
        if offset + 8 > len(data):
            raise TokenizerError(f"{path}: ends in the middle of piece {len(pieces)}: truncated?")
        score, length = struct.unpack_from("<fi", data, offset)
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


def _read_sentencepiece(path: Path, data: bytes) -> tuple[list[bytes], list[float]]:
    try:
        return sentencepiece_model.read(data)
    except ValueError as error:
        raise TokenizerError(f"{path}: not a sentencepiece model of use here: {error}") from None
