"""The words of the stories."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from tools.stories.characters import ADULTS, NAMES, Character, is_name
from tools.stories.grammar import Beat, Choice, Row, pages

_WORD = re.compile(r"[A-Za-z]+(?:-[A-Za-z]+)*(?:'[a-z]+)?")


def words(text: str) -> list[str]:
    """The words of a text, "don't" and "hee-haw" as one; 's of a possessor is dropped."""
    return [word.removesuffix("'s") for word in _WORD.findall(text)]


@cache
def vocabulary() -> frozenset[str]:
    """All words a story may have, in lower case, names of heroes and friends left out."""
    lists, plots = pages()
    forms = [form for found in lists.values() for form in found]
    for step in (step for plot in plots for step in plot.steps):
        if isinstance(step, Beat):
            forms += step.forms
        elif isinstance(step, Row):
            forms += [form for line in step.lines for form in line]
    found = {"an", "girl", "boy", "hand", "mom", "dad", "grandma", "grandpa"}
    for sex in ("girl", "boy"):
        found |= set(Character("", sex).slots().values())
    for form in forms:
        for text in _texts(form.parts):
            found |= {word.lower() for word in words(text)}
    return frozenset(found)


def names(text: str) -> list[str]:
    """Whoever a text names, in order; not what only looks like a name, as Some or Silo would."""
    return [word for word in words(text) if _names(word)]


@cache
def _names(word: str) -> bool:
    return word in NAMES or is_name(word) and word.lower() not in vocabulary()


def said_again(text: str) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each name, "mom" or "dad" that occurred before."""
    known = set()
    for found in _WORD.finditer(text):
        word = found[0].removesuffix("'s")
        if word in ADULTS or _names(word):
            if word in known:
                yield found.start(), found.start() + len(word)
            known.add(word)


def _texts(parts: list) -> Iterator[str]:
    for part in parts:
        if isinstance(part, str):
            yield part
        elif isinstance(part, Choice):
            for option in part.options:
                yield from _texts(option)
