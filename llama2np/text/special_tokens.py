"""Added tokens: texts that become one token wherever they occur, before anything else happens."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class AddedToken:
    """A token with a text of its own, as tokenizer.json describes it.

    single_word: not inside a word. lstrip, rstrip: the white space before or after belongs to it.
    normalized: it is searched for in the normalized text. special: it is not part of a text.
    """

    id: int
    content: str
    special: bool = True
    normalized: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False


class Finder:
    """Finds added tokens in a text: the leftmost first, of those the longest."""

    def __init__(self, tokens: Iterable[AddedToken], spelled: Callable[[str], str] = str):
        """spelled: the form of a token's content in the texts."""
        self._tokens = {text: token for token in tokens if (text := spelled(token.content))}
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    def split(self, text: str) -> list[tuple[str, int | None]]:
        """The parts of a text: (text, None) or (text, token). None of them is empty."""
        if not self._tokens:
            return [(text, None)] if text else []
        parts: list[tuple[str, int | None]] = []
        end = 0
        for match in self._pattern.finditer(text):
            token = self._tokens[match[0]]
            start, after = match.span()
            if token.single_word and _is_inside_a_word(text, start, after):
                continue
            while token.lstrip and start > end and text[start - 1].isspace():
                start -= 1
            while token.rstrip and after < len(text) and text[after].isspace():
                after += 1
            if start > end:
                parts.append((text[end:start], None))
            parts.append((text[start:after], token.id))
            end = after
        if end < len(text):
            parts.append((text[end:], None))
        return parts


def _is_inside_a_word(text: str, start: int, end: int) -> bool:
    return any(map(_in_words, text[max(start - 1, 0) : start] + text[end : end + 1]))


def _in_words(character: str) -> bool:
    kind = unicodedata.category(character)
    return kind[0] in "LM" or kind in ("Nd", "Nl", "Pc") or character in "\u200c\u200d"
