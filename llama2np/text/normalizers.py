"""Normalizers of a tokenizer.json: they change a text before it is split.

Each function reads the fields of one type and returns the change, a function from str to str. The
fields have the meaning that they have in the package `tokenizers` (0.23).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Literal

from llama2np.text.fields import Fields
from llama2np.text.parts import pattern_of, sequence, unsupported

Normalizer = Callable[[str], str]


def normalizer(fields: Fields | None) -> Normalizer:
    """The normalizer that these fields describe. Raises TokenizerError."""
    return _one(fields) if fields else lambda text: text


def bert_normalizer(
    clean: bool = True, cjk: bool = True, accents: bool | None = None, lowercase: bool = True
) -> Normalizer:
    """BERT's: control characters go, each CJK character becomes a word, accents go, lower case.

    accents: whether accents are removed; None: if `lowercase`.
    """
    strip = lowercase if accents is None else accents

    def normalize(text: str) -> str:
        if clean:
            text = "".join(" " if _is_space(c) else c for c in text if not _is_control(c))
        if cjk:
            text = "".join(f" {c} " if _is_cjk(c) else c for c in text)
        if strip:
            text = unicodedata.normalize("NFD", text)
            text = "".join(c for c in text if unicodedata.category(c) != "Mn")
        return lowered(text) if lowercase else text

    return normalize


def lowered(text: str) -> str:
    """Lower case character by character: str.lower looks at the neighbours of a sigma."""
    return text.lower() if text.isascii() else "".join(map(str.lower, text))


def _one(fields: Fields, depth: int = 0) -> Normalizer:
    kind = fields.text("type")
    if kind == "Sequence":
        inner = sequence(fields, "normalizers", depth)
        return _chained([_one(one, depth + 1) for one in inner])
    if kind not in _TYPES:
        raise unsupported(fields, "normalizer", kind, _TYPES)
    return _TYPES[kind](fields)


def _chained(steps: list[Normalizer]) -> Normalizer:
    def normalize(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return normalize


def _form(name: Literal["NFC", "NFD", "NFKC", "NFKD"]) -> Callable[[Fields], Normalizer]:
    return lambda _: lambda text: unicodedata.normalize(name, text)


def _prepend(fields: Fields) -> Normalizer:
    prefix = fields.text("prepend")
    return lambda text: prefix + text if text else text


def _replace(fields: Fields) -> Normalizer:
    pattern, content = pattern_of(fields), fields.text("content")
    if isinstance(pattern, str):
        return lambda text: text.replace(pattern, content) if pattern else text
    return lambda text: pattern.replaced(text, content)


def _strip(fields: Fields) -> Normalizer:
    left, right = fields.flag("strip_left", True), fields.flag("strip_right", True)

    def normalize(text: str) -> str:
        text = text.lstrip() if left else text
        return text.rstrip() if right else text

    return normalize


def _strip_accents(_: Fields) -> Normalizer:
    return lambda text: "".join(c for c in text if unicodedata.category(c)[0] != "M")


def _bert(fields: Fields) -> Normalizer:
    accents = None if fields.get("strip_accents") is None else fields.flag("strip_accents")
    return bert_normalizer(
        fields.flag("clean_text", True),
        fields.flag("handle_chinese_chars", True),
        accents,
        fields.flag("lowercase", True),
    )


def _is_space(c: str) -> bool:
    return c in "\t\n\r" or (c.isspace() and not "\x1c" <= c <= "\x1f")


def _is_control(c: str) -> bool:
    if c in "\0\ufffd":
        return True
    return c not in "\t\n\r" and unicodedata.category(c) in ("Cc", "Cf", "Co")


def _is_cjk(c: str) -> bool:
    return any(first <= c <= last for first, last in _CJK)


# The blocks that BERT's tokenization.py names.
_CJK = (
    ("\u4e00", "\u9fff"),
    ("\u3400", "\u4dbf"),
    ("\U00020000", "\U0002a6df"),
    ("\U0002a700", "\U0002b73f"),
    ("\U0002b740", "\U0002b81f"),
    ("\U0002b920", "\U0002ceaf"),
    ("\uf900", "\ufaff"),
    ("\U0002f800", "\U0002fa1f"),
)

_TYPES: dict[str, Callable[[Fields], Normalizer]] = {
    "NFC": _form("NFC"),
    "NFD": _form("NFD"),
    "NFKC": _form("NFKC"),
    "NFKD": _form("NFKD"),
    "Lowercase": lambda _: lowered,
    "Prepend": _prepend,
    "Replace": _replace,
    "Strip": _strip,
    "StripAccents": _strip_accents,
    "BertNormalizer": _bert,
}
