"""Text to tokens and back.

With a tokenizer.bin this is llama2.c's algorithm: the byte-pair encoding of sentencepiece, for
Llama's layout of the vocabulary. With a tokenizer.model the sentencepiece package encodes, and the
layout may be any. Special pieces such as "<s>", and added tokens, are encoded as ordinary text.
"""

from __future__ import annotations

import codecs
import copy
import os
import re
import struct
from collections.abc import Iterable, Mapping
from heapq import heapify, heappop, heappush
from pathlib import Path

import numpy as np

from llama2np import advice, arguments
from llama2np.files import open_regular, read_at_most
from llama2np.formats import kinds
from llama2np.formats.kinds.signs import is_sentencepiece, is_tokenizer_bin
from llama2np.output import brief, printable
from llama2np.text import added_tokens, sentencepiece_model
from llama2np.text.sentencepiece_model import SentencePieceModel

BOS, EOS = 1, 2  # the ids of <s> and </s>, in every tokenizer.bin
_UNKNOWN = 0
_FIRST_BYTE = 3  # <0x00> ... <0xFF> follow the three special pieces
_LOWEST_SCORE = -1e10  # run.c merges pairs with a higher score
_LARGEST = 2**26  # bytes in a file; a file of 256 thousand pieces has a tenth of it
_LONGEST_PIECE = 2048  # bytes: sentencepiece trains pieces of up to 512 characters
# The most rows of a model without a piece: vocabularies are padded to multiples of up to 8,192.
_MAX_MISSING = 2**13
_BYTE_PIECE = re.compile(rb"<0x([0-9A-Fa-f]{2})>")


class TokenizerError(ValueError):
    """A tokenizer file that cannot be used. The text has the file, what was expected and found."""

    def __init__(self, text: str):
        super().__init__(printable(text))


class Tokenizer:
    """A vocabulary: pieces of text as bytes, and the score of merging into each.

    Pieces have spaces, not sentencepiece's "▁". `bos_id` and `eos_id` are the tokens that begin and
    end a text, or None. A model may have rows, for padding, for which the tokenizer has no piece:
    their piece is b"", they are in `missing` (n,) int64, they are printed as "", and generation
    does not choose them.
    """

    def __init__(
        self,
        pieces: Iterable[bytes],
        scores: Iterable[float] | None = None,
        model: SentencePieceModel | None = None,
    ):
        """Without a sentencepiece `model` it encodes as llama2.c does: BOS is 1, EOS is 2."""
        if scores is None or isinstance(pieces, (str, os.PathLike)):
            raise TypeError("Tokenizer() takes pieces and scores; Tokenizer.load opens a file")
        self.pieces = list(pieces)
        self.scores = list(scores)
        if len(self.pieces) != len(self.scores):
            raise ValueError(f"{len(self.pieces)} pieces but {len(self.scores)} scores")
        self._model = model
        self.bos_id: int | None = model.bos_id if model else BOS
        self.eos_id: int | None = model.eos_id if model else EOS
        self._ids: dict[bytes, int] = {}
        for i, piece in enumerate(self.pieces):
            self._ids.setdefault(piece, i)
        # What is printed for each token, and for it at the beginning of a text.
        self._texts = list(model.texts) if model else [_spelled(piece) for piece in self.pieces]
        for special in self.ends:
            if special < len(self._texts):
                self._texts[special] = b""
        first = model.first_texts if model else [text.removeprefix(b" ") for text in self._texts]
        self._first_texts = list(first)
        self._drops_all = bool(model and model.removes_spaces)
        self.missing = _missing(self.pieces)

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size:,} pieces)"

    @property
    def vocab_size(self) -> int:
        """The number of pieces."""
        return len(self.pieces)

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end a text: BOS and EOS, if the tokenizer has them."""
        return frozenset(i for i in (self.bos_id, self.eos_id) if i is not None)

    @property
    def like_llama2c(self) -> bool:
        """Whether llama2.c's encoder gives the same tokens with these pieces."""
        return not self._model or not self._model.unlike_llama2c()

    @classmethod
    def load(cls, path: str | os.PathLike[str], vocab_size: int | None = None) -> Tokenizer:
        """Read a tokenizer.bin or a sentencepiece model; the first bytes of the file decide which.

        Beside a sentencepiece model, Hugging Face's files of added tokens are read, too.
        vocab_size: that of the network, which may have up to 8,192 rows more than there are pieces.
        Raises TokenizerError, also for any other vocab_size, and OSError if the file cannot be
        read.
        """
        path = Path(arguments.path_like("path", path))
        if vocab_size is not None:
            vocab_size = arguments.whole("vocab_size", vocab_size)
        added: dict[int, bytes] = {}
        with kinds.named(path, "tokenizer", TokenizerError):
            data = _contents(path)
            by_name = path.suffix == ".model" and not is_tokenizer_bin(data)
            if by_name or is_sentencepiece(data):
                model = read_model(path, data)
                tokenizer = cls(model.pieces, model.scores, model)
                added = _added_tokens(path.parent)
            else:
                tokenizer = cls(*_read_bin(path, data))
                if problem := _misplaced(tokenizer.pieces):
                    raise TokenizerError(
                        f"{path}: not in llama2.c's layout: {problem}; "
                        "use the tokenizer.model it was made from"
                    )
        longest = max(map(len, tokenizer.pieces), default=0)
        if tokenizer.vocab_size > sentencepiece_model.MAX_PIECES or longest > _LONGEST_PIECE:
            raise TokenizerError(
                f"{path}: holds {tokenizer.vocab_size:,} pieces of up to {longest:,} bytes, "
                f"expected at most {sentencepiece_model.MAX_PIECES:,} of {_LONGEST_PIECE:,}"
            )
        if tokenizer.vocab_size < 3:
            raise TokenizerError(f"{path}: holds {tokenizer.vocab_size} pieces, expected 3 or more")
        return tokenizer._for_model(path, added, vocab_size)

    def _for_model(self, path: Path, added: dict[int, bytes], vocab_size: int | None) -> Tokenizer:
        """This tokenizer with added tokens, extended to `vocab_size`. Raises TokenizerError."""
        count = self.vocab_size
        # A model may lack the rows of added tokens: Llama 2's chat models have no row for "<pad>".
        limit = count + _MAX_MISSING if vocab_size is None else vocab_size
        added = {token: text for token, text in added.items() if count <= token < limit}
        known = self.extended(max(added, default=-1) + 1, added)
        if vocab_size is None:
            return known
        if not count <= vocab_size <= known.vocab_size + _MAX_MISSING:
            raise TokenizerError(
                f"{path}: holds {count:,} pieces, the model's vocabulary is {vocab_size:,}: "
                "name the tokenizer that the model was trained with (-z FILE); "
                f"Llama 2's, of 32,000: {advice.fetching('tokenizer.bin')}"
            )
        return known.extended(vocab_size)

    def extended(self, vocab_size: int, added: Mapping[int, bytes] | None = None) -> Tokenizer:
        """A tokenizer extended to `vocab_size` tokens; itself if it has as many pieces or more.

        added: {token: text to print for it}; for other new tokens "" is printed. `encode` never
        returns new tokens.
        """
        more = [(added or {}).get(i, b"") for i in range(self.vocab_size, vocab_size)]
        if not more:
            return self
        twin = copy.copy(self)
        twin.pieces, twin._texts = self.pieces + more, self._texts + more
        twin._first_texts = self._first_texts + more
        twin.scores = self.scores + [_LOWEST_SCORE] * len(more)
        twin.missing = _missing(twin.pieces)
        return twin

    @arguments.none_means_default
    def encode(self, text: str, bos: bool | None = True, eos: bool | None = False) -> list[int]:
        """Return the tokens of `text`: run.c's, or sentencepiece's, in O(n log n).

        run.c puts a space before any text but "", and encodes a character that is not in the
        vocabulary as its UTF-8 bytes. bos, eos: begin with BOS, end with EOS, if the tokenizer has
        them. Raises ValueError for text that UTF-8 cannot encode.
        """
        try:
            arguments.text("text", text).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"not valid UTF-8 at character {error.start}: {text[error.start]!a}"
            ) from None
        tokens = self._model.encode(text) if self._model else self._encode(text)
        if bos and self.bos_id is not None:
            tokens.insert(0, self.bos_id)
        if eos and self.eos_id is not None:
            tokens.append(self.eos_id)
        return tokens

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of `tokens`, without BOS and without the space after it.

        If the tokenizer has no BOS, the first space is removed. If the settings of a sentencepiece
        model do not add a space before a text, none is removed.
        Raises ValueError for a token outside the vocabulary.
        """
        tokens = arguments.token_list("tokens", tokens)
        decoder = Decoder(self)
        return "".join([decoder.feed(token) for token in tokens]) + decoder.flush()

    def _encode(self, text: str) -> list[int]:
        """run.c's tokens, without BOS."""
        tokens = []
        if text:
            for character in " " + text:
                tokens += self._character(character.encode())
        return self._merge(tokens)

    def _character(self, character: bytes) -> list[int]:
        token = self._ids.get(character)
        if token is not None:
            return [token]
        if self.vocab_size < _FIRST_BYTE + 256:  # there are no byte pieces
            return [_UNKNOWN]
        return [_FIRST_BYTE + byte for byte in character]

    def _merge(self, tokens: list[int]) -> list[int]:
        """Merge the adjacent pair with the best score, the leftmost of equals, until none merges.

        A heap holds the candidate pairs. A pair is skipped if one of its tokens has changed since.
        """
        after = list(range(1, len(tokens) + 1))  # a linked list, since a merge removes a token
        before = list(range(-1, len(tokens) - 1))
        tokens = [*tokens, -1]  # -1 marks the end of the list, and removed tokens

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
    """Decodes a stream of tokens. A character split over several tokens comes with the last one.

    `previous` is the token before the first one, if there is one. Bytes that are not UTF-8 become
    U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer, previous: int | None = None):
        self._tokenizer = tokenizer
        # Whether the next piece begins a text: then its first space does not belong to the text.
        self._first = previous == tokenizer.bos_id
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """The text that `token` completes; "" in the middle of a character.

        Raises ValueError for a token outside the vocabulary.
        """
        if not 0 <= token < self._tokenizer.vocab_size:
            last = self._tokenizer.vocab_size - 1
            raise ValueError(f"token {token} is not in the vocabulary of 0 to {last}")
        text = shown = self._tokenizer._texts[token]
        if token == self._tokenizer.bos_id:
            self._first = True
        elif self._first:
            shown = self._tokenizer._first_texts[token]  # without the space that encode put there
            seen = shown if self._tokenizer._drops_all else text
            self._first = not seen and token != self._tokenizer.eos_id
        return self._utf8.decode(shown)

    def flush(self) -> str:
        """The rest at the end of the tokens: U+FFFD for an incomplete character, else ""."""
        return self._utf8.decode(b"", final=True)


def _spelled(piece: bytes) -> bytes:
    """The bytes that a piece represents: one byte for "<0x41>", otherwise the piece itself."""
    match = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(match[1], 16)]) if match else piece


def _contents(path: Path) -> bytes:
    with open_regular(path) as file:
        data = read_at_most(file, _LARGEST)
        if data is None:  # a model in place of a tokenizer would fill the memory
            size = max(os.fstat(file.fileno()).st_size, _LARGEST + 1)
            raise TokenizerError(
                f"{path}: not a tokenizer: it has {size:,} bytes, expected at most {_LARGEST:,}"
            )
    return data


def _read_bin(path: Path, data: bytes) -> tuple[list[bytes], list[float]]:
    """Read llama2.c's format: the uint32 length of the longest piece, then for each piece its
    float32 score, its int32 length, and its bytes.
    """
    if len(data) < 4:
        raise TokenizerError(f"{path}: not a tokenizer.bin: {len(data)} bytes, expected 4 or more")
    longest = min(struct.unpack_from("<I", data)[0], _LONGEST_PIECE)
    pieces: list[bytes] = []
    scores: list[float] = []
    offset = 4
    while offset < len(data) and len(pieces) <= sentencepiece_model.MAX_PIECES:
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


def _misplaced(pieces: list[bytes]) -> str:
    """A description of the first piece that is not at llama2.c's place for it; "" if all are.

    A vocabulary that is too small for byte pieces may have none.
    """
    for special, piece in ((BOS, b"\n<s>\n"), (EOS, b"\n</s>\n")):
        if piece in pieces and pieces[special] != piece:
            return f"{_shown(piece)} is piece {pieces.index(piece)}, expected {special}"
    if len(pieces) < _FIRST_BYTE + 256 and not any(map(_BYTE_PIECE.fullmatch, pieces)):
        return ""
    for byte in range(256):
        piece = b"".join(pieces[_FIRST_BYTE + byte :][:1])
        if not _BYTE_PIECE.fullmatch(piece) or _spelled(piece) != bytes([byte]):
            return f"piece {_FIRST_BYTE + byte} is {_shown(piece)}, expected <0x{byte:02X}>"
    return ""


def _shown(piece: bytes) -> str:
    return brief(piece.decode("utf-8", "replace")) if piece else "missing"


def _missing(pieces: list[bytes]) -> np.ndarray:
    return np.array([i for i, piece in enumerate(pieces) if not piece], np.int64)


def _added_tokens(folder: Path) -> dict[int, bytes]:
    try:
        return added_tokens.read(folder)
    except ValueError as error:
        raise TokenizerError(str(error)) from None


def read_model(path: Path, data: bytes | None = None) -> SentencePieceModel:
    """Read a tokenizer.model alone; data: its content. Raises TokenizerError, and OSError."""
    try:
        return sentencepiece_model.read(_contents(path) if data is None else data)
    except TokenizerError:
        raise
    except ValueError as error:
        raise TokenizerError(
            f"{path}: not a sentencepiece model that can be used here: {error}"
        ) from None
