"""sentencepiece's tokenizer.model: the sentencepiece package reads it and encodes with it.

This module reads what the package does not report: the settings in the file. They decide how tokens
become text, and whether llama2.c can use the pieces.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from llama2np.files import open_regular, read_at_most
from llama2np.text.decoder import Shown
from llama2np.text.errors import TokenizerError
from llama2np.text.models import MAX_PIECES
from llama2np.text.post_processors import Template
from llama2np.text.special_tokens import AddedToken, Finder

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

LARGEST = 2**26  # bytes in a file; a file of 256 thousand pieces has a tenth of it
_SPACE = "▁"  # U+2581, which represents a space in a piece
_KINDS = {1: "Unigram", 2: "BPE", 3: "Word", 4: "Char"}  # TrainerSpec.ModelType
_BPE = 2
_TYPES = {1: "normal", 2: "unknown", 3: "control", 4: "user-defined", 5: "unused", 6: "a byte"}
_NORMAL, _BYTE = 1, 6  # SentencePiece.Type
_ERRORS = (RuntimeError, ValueError, TypeError, LookupError)  # the exceptions of the package

# Field numbers of sentencepiece_model.proto: of ModelProto, then (its field, the field in that).
_PIECE, _PIECE_TYPE = 1, 3
_MODEL_TYPE = 2, 3  # in TrainerSpec
_WHITESPACE_AS_SUFFIX = 2, 24
_BYTE_FALLBACK = 2, 35
_CHARSMAP = 3, 2  # in NormalizerSpec
_DUMMY_PREFIX = 3, 3
_REMOVE_EXTRA_WHITESPACES = 3, 4
_ESCAPE_WHITESPACES = 3, 5
_DENORMALIZER_CHARSMAP = 5, 2  # in a NormalizerSpec, too
_DEFAULTS: dict[tuple[int, int], int | bytes] = {
    _MODEL_TYPE: 1,
    _WHITESPACE_AS_SUFFIX: 0,
    _BYTE_FALLBACK: 0,
    _CHARSMAP: b"",
    _DUMMY_PREFIX: 1,
    _REMOVE_EXTRA_WHITESPACES: 1,
    _ESCAPE_WHITESPACES: 1,
    _DENORMALIZER_CHARSMAP: b"",
}

# A setting, the value that llama2.c assumes, and what another value means.
_OTHER_TEXTS = (
    (_CHARSMAP, b"", "it normalizes texts (NFKC, or another charsmap)"),
    (_DUMMY_PREFIX, 1, "it puts no space before a text (add_dummy_prefix is false)"),
    (_ESCAPE_WHITESPACES, 1, "its spaces are not written as ▁ (escape_whitespaces is false)"),
    (_WHITESPACE_AS_SUFFIX, 0, "its spaces end a word (treat_whitespace_as_suffix)"),
)


@dataclass(frozen=True)
class SentencePieceModel:
    """A tokenizer.model: its vocabulary, and sentencepiece's encoder.

    `pieces` are spelled as llama2.c's tokenizer.py spells them. `texts` are what is printed for
    each token, and `first_texts` what is printed for it at the beginning of a text.
    """

    pieces: list[bytes]
    scores: list[float]
    texts: list[bytes]
    first_texts: list[bytes]
    bos_id: int | None
    eos_id: int | None
    settings: dict[tuple[int, int], int | bytes]
    processor: SentencePieceProcessor
    added: Sequence[AddedToken]  # the control pieces, and the unknown one
    template: Template

    @cached_property
    def shown(self) -> Shown:
        """What is printed for each token."""
        texts, first = list(self.texts), list(self.first_texts)
        for special in {self.bos_id, self.eos_id} - {None}:
            texts[special or 0] = b""
        until = "shown" if self.removes_spaces else "text"
        return Shown(texts, first, begins=False, until=until, again=True)

    @cached_property
    def like_llama2c(self) -> bool:
        """Whether llama2.c's encoder gives the same tokens with these pieces."""
        return not self.unlike_llama2c()

    def with_settings(self, added: Sequence[AddedToken], template: Template) -> SentencePieceModel:
        """This model with tokens that were added later, and with what surrounds a text."""
        return replace(self, added=[*self.added, *added], template=template)

    @cached_property
    def _finder(self) -> Finder:
        return Finder(self.added)

    @property
    def removes_spaces(self) -> bool:
        """Whether it removes spaces before and after a text, and repeated spaces in it."""
        return bool(self.settings[_REMOVE_EXTRA_WHITESPACES])

    def encode(self, text: str, special: bool | None = None) -> list[int]:
        """The tokens of a text, without BOS. Raises ValueError if sentencepiece fails.

        special: the names of control pieces and added tokens in the text are those tokens. What is
        between them is encoded as a text of its own.
        """
        if not special:
            return self._encode(text)
        tokens: list[int] = []
        for part, token in self._finder.split(text):
            tokens += self._encode(part) if token is None else [token]
        return tokens

    def _encode(self, text: str) -> list[int]:
        try:
            return list(self.processor.encode(text))
        except _ERRORS as error:
            raise ValueError(f"sentencepiece cannot encode this text: {error}") from None

    def piece_types(self) -> Iterator[int]:
        """The type of each piece of the file: 1 normal, 2 unknown, 3 control and so on."""
        return _types(self.processor.serialized_model_proto())

    def unlike_llama2c(self) -> str:
        """The first assumption of llama2.c that this model violates; "" if there is none.

        If there is one, llama2.c's encoder gives other tokens with these pieces in a tokenizer.bin.
        `removes_spaces` is not one of them: llama2.c's own training script makes such models.
        """
        if (self.bos_id, self.eos_id) != (1, 2):
            found = [("missing" if i is None else i) for i in (self.bos_id, self.eos_id)]
            return f"its <s> is {found[0]} and its </s> {found[1]}, expected 1 and 2"
        if not self.settings[_BYTE_FALLBACK]:
            return "it has no byte_fallback: characters outside its vocabulary have no tokens"
        for i, kind in enumerate(self.piece_types()):
            expected = kind if i < 3 else _BYTE if i < 259 else _NORMAL
            if kind != expected:
                found_type = _TYPES.get(kind, kind)
                return f"its piece {i} is {found_type}, expected {_TYPES[expected]}"
            if expected == _BYTE and self.texts[i] != bytes([i - 3]):
                return f"its piece {i} is the byte {self.texts[i]!r}, expected {bytes([i - 3])!r}"
        for setting, value, difference in _OTHER_TEXTS:
            if self.settings[setting] != value:
                return difference
        return ""


def read(data: bytes) -> SentencePieceModel:
    """Read a tokenizer.model. Raises ValueError if it cannot be used here."""
    from sentencepiece import SentencePieceProcessor  # not imported unless there is such a file

    if not data:
        raise ValueError("it is empty")  # sentencepiece would log to standard error
    settings = _settings(data)  # limits the pieces before sentencepiece makes objects for them
    try:
        model = SentencePieceProcessor(model_proto=data)
        names = model.id_to_piece(list(range(model.vocab_size())))
        texts = _texts(model, names)
    except _ERRORS as error:
        raise ValueError(str(error)) from None
    if (kind := settings[_MODEL_TYPE]) != _BPE:
        raise ValueError(f"its algorithm is {_KINDS.get(int(kind), kind)}, expected BPE")
    if settings[_DENORMALIZER_CHARSMAP]:
        raise ValueError(
            "it changes texts after decoding (denormalizer_spec), which is not supported"
        )
    pieces = [name.replace(_SPACE, " ").encode() for name in names]
    bos_id, eos_id = (i if i >= 0 else None for i in (model.bos_id(), model.eos_id()))
    for special, spelling in ((bos_id, b"\n<s>\n"), (eos_id, b"\n</s>\n")):
        if special is not None:
            pieces[special] = spelling
    first_texts = list(texts)
    if settings[_DUMMY_PREFIX] or settings[_REMOVE_EXTRA_WHITESPACES]:
        for i, name in enumerate(names):
            if name.startswith(_SPACE):
                first_texts[i] = texts[i].removeprefix(b" ")
    ids = list(range(len(names)))
    kinds = zip(ids, model.is_control(ids), model.is_unknown(ids), strict=True)
    return SentencePieceModel(
        pieces,
        model.get_score(ids),
        texts,
        first_texts,
        bos_id,
        eos_id,
        settings,
        model,
        [
            AddedToken(i, names[i], special=control)
            for i, control, unknown in kinds
            if control or unknown
        ],
        Template.around([] if bos_id is None else [bos_id]),
    )


def read_model(path: Path, data: bytes | None = None) -> SentencePieceModel:
    """Read a tokenizer.model alone; data: its content. Raises TokenizerError, and OSError."""
    try:
        return read(contents(path) if data is None else data)
    except TokenizerError:
        raise
    except ValueError as error:
        raise TokenizerError(
            f"{path}: not a sentencepiece model that can be used here: {error}"
        ) from None


def contents(path: Path) -> bytes:
    """The bytes of a tokenizer's file. Raises TokenizerError if they are too many, and OSError."""
    with open_regular(path) as file:
        data = read_at_most(file, LARGEST)
        if data is None:  # a model in place of a tokenizer would fill the memory
            size = max(os.fstat(file.fileno()).st_size, LARGEST + 1)
            raise TokenizerError(
                f"{path}: not a tokenizer: it has {size:,} bytes, expected at most {LARGEST:,}"
            )
    return data


def _texts(model: SentencePieceProcessor, names: list[str]) -> list[bytes]:
    """The text to which sentencepiece decodes each token."""
    ids = list(range(len(names)))
    texts = [name.replace(_SPACE, " ").encode() for name in names]
    kinds = zip(model.is_control(ids), model.is_unknown(ids), model.is_byte(ids), strict=True)
    for i, (control, unknown, byte) in enumerate(kinds):
        if control:
            texts[i] = b""
        elif unknown:
            texts[i] = model.decode([i]).encode()  # " ⁇ ", unless the file has another text
        elif byte:
            texts[i] = bytes([int(names[i][1:-1], 16)])  # "<0x41>"
    return texts


def _settings(data: bytes) -> dict[tuple[int, int], int | bytes]:
    """The settings of a ModelProto, with defaults for missing ones. Raises ValueError."""
    found = dict(_DEFAULTS)
    for field, message in _fields(data):
        if field != _PIECE and isinstance(message, bytes):
            for name, value in _fields(message):
                if isinstance(value, type(found.get((field, name)))):
                    found[field, name] = value  # protobuf's rule: the last value counts
    return found


def _types(data: bytes) -> Iterator[int]:
    """The Type of each piece of a ModelProto."""
    for field, message in _fields(data):
        if field == _PIECE and isinstance(message, bytes):
            yield int(dict(_fields(message)).get(_PIECE_TYPE, _NORMAL))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) for a protobuf message. Raises ValueError.

    A value of fixed width is yielded as 0.
    """
    at = count = 0
    value: int | bytes
    while at < len(data):
        if (count := count + 1) > MAX_PIECES + 100:  # pieces, and a few other fields
            raise ValueError(f"it has more than {MAX_PIECES:,} pieces")
        key, at = _varint(data, at)
        field, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
        elif wire == 2:
            length, at = _varint(data, at)
            value, at = data[at : at + length], at + length
        elif wire in (1, 5):
            value, at = 0, at + {1: 8, 5: 4}[wire]
        else:
            raise ValueError(f"its fields are damaged near byte {at}")
        yield field, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of up to ten bytes, and the offset of the byte after it."""
    if data[at : at + 1] < b"\x80" and at < len(data):  # most of them
        return data[at], at + 1
    number = 0
    for shift, byte in enumerate(data[at : at + 10]):
        number |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return number, at + shift + 1
    raise ValueError(f"a number is damaged near byte {at}")
