"""A tokenizer as a GGUF file's metadata: the inverse of tokenizer.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from llama2np import box
from llama2np.formats.gguf.tokenizer import SPECIAL
from llama2np.text import loading
from llama2np.text.gguf_parts import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from llama2np.text.llama2c_bpe import BOS, EOS, Llama2cBPE
from llama2np.text.models import BytePairs, WordPiece
from llama2np.text.pipeline import Pipeline
from llama2np.text.sentencepiece_model import SentencePieceModel
from llama2np.text.splittings import SPLITTINGS
from llama2np.text.tokenizer import Tokenizer

_MARK = "▁"
# What tokenizers treat differently: spaces, digits, contractions, ends of lines, accents, scripts.
# None begins with a space: a GGUF file cannot say that such a text gets no further one.
_PROBES = (
    "Hello, world! It's 3:45 in '2024', we'll pay $1,234.56; I'VE said: DON'T. camelCase XMLFile",
    "two  spaces \t tab \n\n\n  lines\r\nend   ",
    "naïve café, cafe\u0301, ß Ω, Ünïcödé; 日本語のテキスト、한국어 и русский 🙂👩‍👩‍👧 ²³½",
    "def f(x):\n    return {'a': [x**2 for _ in range(10)]}  # ok\n<html>&amp;",
)


@dataclass(frozen=True)
class Parts:
    """What `gguf_parts.tokenizer` makes a tokenizer of."""

    kind: str
    pieces: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    pre: str = "default"
    add_space_prefix: bool = True
    options: dict[str, Any] = field(default_factory=dict)  # the others, by their names there

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that a reader makes of these."""
        return Tokenizer.from_parts(
            self.kind,
            self.pieces,
            scores=self.scores,
            merges=self.merges,
            pre=self.pre,
            types=self.types,
            add_space_prefix=self.add_space_prefix,
            **self.options,
        )


def tokenizer_beside(path: str | os.PathLike[str], rows: int) -> Tokenizer | None:
    """The tokenizer of a model: in its folder, or beside its file; None if there is none.

    rows: of the network's vocabulary. Raises TokenizerError, and OSError.
    """
    if box.in_box(path):
        return Tokenizer.load(box.TOKENIZER, rows)
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    return Tokenizer.load(folder, rows) if loading.form_of(folder) else None


def tokenizer_metadata(tokenizer: Tokenizer, rows: int) -> dict[str, Any]:
    """The keys for a tokenizer, and a network whose vocabulary has that number of rows.

    Raises ValueError if no kind of tokenizer of GGUF gives the same tokens.
    """
    parts = _same(tokenizer)
    if len(parts.pieces) > rows:
        raise ValueError(f"has {len(parts.pieces):,} pieces, the network {rows:,} rows")
    more = range(len(parts.pieces), rows)
    pieces = [piece or f"[PAD{i}]" for i, piece in enumerate(parts.pieces)]
    options = parts.options
    found: dict[str, Any] = {
        "model": parts.kind,
        "pre": parts.pre,
        "tokens": pieces + [f"[PAD{i}]" for i in more],
        "token_type": np.array(parts.types + [UNUSED for _ in more], "<i4"),
        **{f"{SPECIAL[name]}_token_id": token for name, token in options["special"].items()},
        "add_bos_token": options["add_bos"],
        "add_eos_token": options["add_eos"],
    }
    if parts.scores is not None:
        found["scores"] = np.array(parts.scores + [0.0 for _ in more], "<f4")
    if parts.merges is not None:
        found["merges"] = parts.merges
    if parts.kind == "llama":
        found["add_space_prefix"] = parts.add_space_prefix
    if options["ends"]:
        found["eot_token_id"] = options["ends"][0]
    metadata = {f"tokenizer.ggml.{key}": value for key, value in found.items()}
    if tokenizer.chat_template is not None:
        metadata["tokenizer.chat_template"] = tokenizer.chat_template.source
    return metadata


def _same(tokenizer: Tokenizer) -> Parts:
    """The first parts with which a reader makes the same tokens of _PROBES. Raises ValueError."""
    after = tokenizer.encode("a", bos=False, eos=False)
    special = tokenizer.special
    ends = sorted(tokenizer.ends - {special.get("eos_token"), special.get("bos_token")})
    options = {
        "special": {name: token for name, token in special.items() if name in SPECIAL},
        "add_bos": tokenizer.adds_bos,
        "add_eos": bool(after) and after[-1] == special.get("eos_token"),
        "ends": ends,
    }
    probes: tuple[str, ...] = _PROBES
    if getattr(tokenizer.algorithm, "removes_spaces", False):  # llama.cpp does not
        probes = tuple(" ".join(text.split()) for text in probes)
    for parts in _candidates(tokenizer):
        whole = replace(parts, options=options)
        made = whole.tokenizer()
        if all(_alike(made, tokenizer, text) for text in probes):
            return whole
    raise ValueError("no kind of tokenizer of GGUF gives its tokens")


def _alike(a: Tokenizer, b: Tokenizer, text: str) -> bool:
    """Whether two tokenizers make the same tokens of a text, and of the same words."""
    return a.encode(text) == b.encode(text) and _words(a, text) == _words(b, text)


def _words(tokenizer: Tokenizer, text: str) -> list[str]:
    """The words of byte-level BPE: tokens of a small vocabulary do not show how it splits."""
    algorithm = tokenizer.algorithm
    if not isinstance(algorithm, Pipeline) or getattr(algorithm.model, "byte_fallback", True):
        return []
    return [word for word, _ in algorithm.pre_tokenize((algorithm.normalize(text), True)) if word]


def _candidates(tokenizer: Tokenizer) -> Iterator[Parts]:
    algorithm = tokenizer.algorithm
    if isinstance(algorithm, Llama2cBPE):
        yield _of_llama2c(algorithm)
    elif isinstance(algorithm, SentencePieceModel):
        yield from _of_sentencepiece(algorithm, tokenizer)
    elif isinstance(algorithm, Pipeline) and isinstance(algorithm.model, WordPiece):
        yield _of_word_piece(algorithm)
    elif isinstance(algorithm, Pipeline) and isinstance(algorithm.model, BytePairs):
        yield from _of_byte_pairs(algorithm, algorithm.model)


def _of_llama2c(algorithm: Llama2cBPE) -> Parts:
    pieces = [piece.decode().replace(" ", _MARK) for piece in algorithm.pieces]
    pieces[BOS : EOS + 1] = ["<s>", "</s>"]
    types = [UNKNOWN, CONTROL, CONTROL, *(NORMAL for _ in pieces[3:])]
    for i in range(3, min(259, len(pieces))):
        if pieces[i] == f"<0x{i - 3:02X}>":
            types[i] = BYTE
    return Parts("llama", pieces, types, algorithm.scores)


def _of_sentencepiece(model: SentencePieceModel, tokenizer: Tokenizer) -> Iterator[Parts]:
    count = len(model.pieces)
    pieces = model.processor.id_to_piece(list(range(count)))
    added = {token.id: token for token in model.added if token.id >= count}
    for i in range(count, tokenizer.vocab_size):
        pieces.append(added[i].content if i in added else "")
    types = [*model.piece_types()]
    types += [CONTROL if i in added else UNUSED for i in range(count, len(pieces))]
    scores = model.scores + [0.0] * (len(pieces) - count)
    for prefix in (True, False):
        yield Parts("llama", pieces, types, scores, add_space_prefix=prefix)


def _of_word_piece(algorithm: Pipeline) -> Parts:
    """In GGUF "▁" begins the pieces that begin a word, and "##" is left out."""
    types = _types(algorithm)
    pieces = [
        piece if kind != NORMAL else piece[2:] if piece.startswith("##") else _MARK + piece
        for piece, kind in zip(algorithm.spelled, types, strict=True)
    ]
    return Parts("bert", pieces, types)


def _of_byte_pairs(algorithm: Pipeline, model: BytePairs) -> Iterator[Parts]:
    spelled, types = algorithm.spelled, _types(algorithm)
    ranked = model.ranked()
    merges = [f"{spelled[a]} {spelled[b]}" for a, b, _ in ranked]
    if not model.byte_fallback:
        names: dict[int, str] = {}
        for name, splitting in SPLITTINGS.items():
            if name not in ("", "default"):
                names.setdefault(id(splitting), name)
        for name in names.values():
            yield Parts("gpt2", spelled, types, merges=merges, pre=name)
        return
    # By scores, as sentencepiece has them: a pair that merges earlier has a higher one.
    scores = [0.0] * len(spelled)
    for rank in reversed(range(len(ranked))):
        scores[ranked[rank][2]] = -float(rank)
    if model.unknown is not None:
        types[model.unknown] = UNKNOWN
    for i, piece in enumerate(spelled):
        if len(piece) == 6 and piece.startswith("<0x"):
            types[i] = BYTE
    for prefix in (True, False):
        yield Parts("llama", spelled, types, scores, add_space_prefix=prefix)


def _types(algorithm: Pipeline) -> list[int]:
    types = [NORMAL if piece else UNUSED for piece in algorithm.spelled]
    for token in algorithm.added:
        types[token.id] = CONTROL if token.special else USER_DEFINED
    return types
