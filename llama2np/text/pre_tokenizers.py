"""Pre-tokenizers of a tokenizer.json: they split a normalized text into words.

A word is (text, whether it begins the whole text). Each function reads the fields of one type and
returns the splitting of a word. The fields mean the same as in the package `tokenizers`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from llama2np.output import brief
from llama2np.text.byte_letters import to_letters
from llama2np.text.errors import TokenizerError
from llama2np.text.fields import Fields
from llama2np.text.parts import pattern_of, sequence, unsupported
from llama2np.text.patterns import Pattern

Word = tuple[str, bool]
PreTokenizer = Callable[[Word], Iterable[Word]]
# A text -> its parts, (start, end, whether it separates others).
Parts = Iterable[tuple[int, int, bool]]

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
BEHAVIORS = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")


def pre_tokenizer(fields: Fields | None) -> PreTokenizer:
    """The pre-tokenizer that these fields describe. Raises TokenizerError."""
    return _one(fields) if fields else lambda word: [word]


def chained(steps: list[PreTokenizer]) -> PreTokenizer:
    """All of these, one after the other."""

    def split(word: Word) -> Iterable[Word]:
        words: Iterable[Word] = [word]
        for step in steps:
            words = [part for one in words for part in step(one)]
        return words

    return split


def byte_level(prefix_space: bool = False, pattern: str | None = GPT2_PATTERN) -> PreTokenizer:
    """GPT-2's: a word is split by the pattern, if there is one, and its bytes become letters."""
    splitter = Pattern(pattern, "the pattern of byte-level BPE") if pattern else None

    def split(word: Word) -> Iterator[Word]:
        text, begins = word
        if prefix_space and not text.startswith(" "):
            text = " " + text
        if splitter is None:
            yield to_letters(text), begins
            return
        for start, end, _ in splitter.splits(text):
            if start < end:
                yield to_letters(text[start:end]), begins and not start

    return split


def split_by(pattern: str, behavior: str = "Isolated", where: str = "a pattern") -> PreTokenizer:
    """Split at the matches of a regular expression."""
    return partial(_split, Pattern(pattern, where).splits, behavior)


def metaspace(mark: str, prepend: str, split: bool) -> PreTokenizer:
    """sentencepiece's: spaces become `mark`; prepend: "always", "first" or "never" puts one first.

    split: whether each mark begins a word.
    """

    def pre_tokenize(word: Word) -> Iterable[Word]:
        text, begins = word[0].replace(" ", mark), word[1]
        if prepend == "always" or (prepend == "first" and begins):
            text = text if text.startswith(mark) else mark + text
        if not split:
            return [(text, begins)]
        return _split(lambda t: _where(t, lambda c: c == mark), "MergedWithNext", (text, begins))

    return pre_tokenize


def bert_words(word: Word) -> Iterable[Word]:
    """BERT's: split at white space, and make each punctuation character a word."""
    for part in _split(lambda t: _where(t, _is_space), "Removed", word):
        yield from _split(lambda t: _where(t, _is_punctuation), "Isolated", part)


def _one(fields: Fields, depth: int = 0) -> PreTokenizer:
    kind = fields.text("type")
    if kind == "Sequence":
        return chained([_one(one, depth + 1) for one in sequence(fields, "pretokenizers", depth)])
    if kind not in _TYPES:
        raise unsupported(fields, "pre_tokenizer", kind, _TYPES)
    return _TYPES[kind](fields)


def _split(parts_of: Callable[[str], Parts], behavior: str, word: Word) -> Iterator[Word]:
    """Split a word into parts, of which some separate others; what becomes of those is `behavior`.

    No part is empty.
    """
    text, begins = word
    for start, end in _joined(parts_of(text), behavior):
        if start < end:
            yield text[start:end], begins and not start


def _joined(parts: Parts, behavior: str) -> Iterator[tuple[int, int]]:
    if behavior == "Removed":
        yield from ((start, end) for start, end, separates in parts if not separates)
        return
    held: tuple[int, int, bool] | None = None
    for part in parts:
        if held is None:
            held = part
            continue
        start, end, separates = part
        if (
            (behavior == "Contiguous" and separates == held[2])
            or (behavior == "MergedWithPrevious" and separates and not held[2])
            or (behavior == "MergedWithNext" and held[2] and not separates)
        ):
            held = held[0], end, separates
        else:
            yield held[:2]
            held = part
    if held is not None:
        yield held[:2]


def _where(text: str, separates: Callable[[str], bool]) -> Parts:
    """Each character that separates others as a part, and the longest parts between them."""
    start = 0
    for i, c in enumerate(text):
        if separates(c):
            if i > start:
                yield start, i, False
            yield i, i + 1, True
            start = i + 1
    if start < len(text):
        yield start, len(text), False


def _find(text: str, part: str) -> Parts:
    """Each occurrence of `part`, and what is between them."""
    at = 0
    while part and (found := text.find(part, at)) >= 0:
        if found > at:
            yield at, found, False
        at = found + len(part)
        yield found, at, True
    if at < len(text):
        yield at, len(text), False


def _behavior(fields: Fields, default: str = "Isolated") -> str:
    behavior = fields.text("behavior", default)
    # Some files have Rust's spelling, some have Python's.
    for known in BEHAVIORS:
        if behavior.replace("_", "").lower() == known.lower():
            return known
    raise TokenizerError(
        f"{fields.where}: behavior is {brief(behavior)}, expected one of {', '.join(BEHAVIORS)}"
    )


def _byte_level(fields: Fields) -> PreTokenizer:
    pattern = GPT2_PATTERN if fields.flag("use_regex", True) else None
    return byte_level(fields.flag("add_prefix_space", True), pattern)


def _split_fields(fields: Fields) -> PreTokenizer:
    pattern, behavior = pattern_of(fields), _behavior(fields)
    find = partial(_find, part=pattern) if isinstance(pattern, str) else pattern.splits
    if not fields.flag("invert"):
        return partial(_split, find, behavior)
    return partial(_split, lambda t: ((a, b, not match) for a, b, match in find(t)), behavior)


def _metaspace(fields: Fields) -> PreTokenizer:
    mark = fields.text("replacement", "▁")
    old = "always" if fields.flag("add_prefix_space", True) else "never"
    prepend = fields.text("prepend_scheme", old)
    if prepend not in ("always", "first", "never"):
        raise TokenizerError(
            f"{fields.where}: prepend_scheme is {brief(prepend)}, expected always, first or never"
        )
    return metaspace(mark, prepend, fields.flag("split", True))


def _digits(fields: Fields) -> PreTokenizer:
    behavior = "Isolated" if fields.flag("individual_digits") else "Contiguous"
    return partial(_split, lambda t: _where(t, _is_number), behavior)


def _punctuation(fields: Fields) -> PreTokenizer:
    return partial(_split, lambda t: _where(t, _is_punctuation), _behavior(fields))


def _whitespace(fields: Fields) -> PreTokenizer:
    words = Pattern(r"\w+|[^\w\s]+", fields.where)
    return partial(
        _split, lambda t: ((a, b, not match) for a, b, match in words.splits(t)), "Removed"
    )


def _delimiter(fields: Fields) -> PreTokenizer:
    delimiter = fields.text("delimiter")
    return partial(_split, lambda t: _where(t, lambda c: c == delimiter), "Removed")


def _is_space(c: str) -> bool:
    return c.isspace() and not "\x1c" <= c <= "\x1f"  # those four are white space to Python alone


def _is_number(c: str) -> bool:
    return unicodedata.category(c)[0] == "N"


def _is_punctuation(c: str) -> bool:
    if c.isascii():
        return c.isprintable() and not c.isalnum() and c != " "
    return unicodedata.category(c)[0] == "P"


_TYPES: dict[str, Callable[[Fields], PreTokenizer]] = {
    "ByteLevel": _byte_level,
    "Split": _split_fields,
    "Metaspace": _metaspace,
    "Digits": _digits,
    "Punctuation": _punctuation,
    "Whitespace": _whitespace,
    "WhitespaceSplit": lambda _: partial(_split, lambda t: _where(t, _is_space), "Removed"),
    "BertPreTokenizer": lambda _: bert_words,
    "CharDelimiterSplit": _delimiter,
}
