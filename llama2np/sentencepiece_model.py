"""sentencepiece's tokenizer.model: the pieces and scores of one that encodes by byte pairs."""

from __future__ import annotations

from collections.abc import Iterator

MAX_PIECES = 2**20  # the largest vocabularies have 256 thousand
_KINDS = {1: "Unigram", 2: "BPE", 3: "Word", 4: "Char"}  # sentencepiece_model.proto, ModelType
_BPE = 2
_TRAINER_SPEC, _MODEL_TYPE = 2, 3  # field numbers there, of ModelProto and of TrainerSpec


def read(data: bytes) -> tuple[list[bytes], list[float]]:
    """Return pieces and scores, spelled as llama2.c's tokenizer.py spells them.

    Raises ValueError for what sentencepiece cannot read, and for another algorithm than BPE.
    """
    from sentencepiece import SentencePieceProcessor  # only for those who have such a file

    if not data:
        raise ValueError("it is empty")  # sentencepiece would log to standard error
    kind = _kind(data)  # before sentencepiece makes objects for millions of pieces
    try:
        model = SentencePieceProcessor(model_proto=data)
        count = model.vocab_size()
        pieces = [model.id_to_piece(i).replace("▁", " ").encode() for i in range(count)]
    except (RuntimeError, ValueError, TypeError) as error:  # UnicodeDecodeError is one of them
        raise ValueError(str(error)) from None
    if kind != _BPE:
        raise ValueError(f"its algorithm is {_KINDS.get(kind, kind)}, expected BPE")
    for special, spelling in ((model.bos_id(), b"\n<s>\n"), (model.eos_id(), b"\n</s>\n")):
        if special >= 0:
            pieces[special] = spelling
    return pieces, [model.get_score(i) for i in range(count)]


def _kind(data: bytes) -> int:
    """The ModelType of a ModelProto, which sentencepiece does not tell."""
    kind = 1  # where the file does not say
    for field, value in _fields(data):
        if field == _TRAINER_SPEC and isinstance(value, bytes):
            for inner, number in _fields(value):
                if inner == _MODEL_TYPE and isinstance(number, int):
                    kind = number  # the last one counts
    return kind


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a protobuf message; values of fixed width as 0. Raises ValueError."""
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
    """A number of up to ten bytes, and the place of what follows."""
    number = 0
    for shift, byte in enumerate(data[at : at + 10]):
        number |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return number, at + shift + 1
    raise ValueError(f"a number is damaged near byte {at}")
