"""Regular expressions of tokenizer files: compiled by the package `regex`, and limited in time.

tokenizers uses Oniguruma, in Ruby's syntax; for the patterns of tokenizers `regex` means the same.
A pattern comes from a file, and may be made to take exponential time: then it is stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from llama2np.output import brief
from llama2np.text.errors import TokenizerError

_LONGEST = 4096  # characters of a pattern; GPT-4o's has 330
_MOST_REPEATS = 10_000  # of "{1000}", multiplied: such a pattern is compiled to as many parts
# Processor time to split a text. Patterns in use need a microsecond for a character.
_SECONDS, _SECONDS_FOR_A_CHARACTER = 2.0, 2e-5


class Pattern:
    """A compiled pattern. Raises TokenizerError if it is not valid."""

    def __init__(self, pattern: str, where: str, literal: bool = False):
        self._where = where
        self._pattern = _compiled(pattern, where, literal)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The matches in `text`, as (start, end). Raises ValueError if they take too long."""
        seconds = _SECONDS + _SECONDS_FOR_A_CHARACTER * len(text)
        try:
            return [match.span() for match in self._pattern.finditer(text, timeout=seconds)]
        except (TimeoutError, RecursionError, MemoryError):
            raise ValueError(
                f"{self._where}: this pattern takes too long for a text of {len(text):,} "
                "characters: use another tokenizer"
            ) from None

    def replaced(self, text: str, by: str) -> str:
        """`text` with `by` in place of each match."""
        parts, end = [], 0
        for start, after in self.spans(text):
            parts += [text[end:start], by]
            end = after
        return "".join([*parts, text[end:]])

    def splits(self, text: str) -> Iterator[tuple[int, int, bool]]:
        """All of `text` as (start, end, whether it is a match); only matches may be empty."""
        at = 0
        for start, end in self.spans(text):
            if start > at:
                yield at, start, False
            yield start, end, True
            at = end
        if at < len(text):
            yield at, len(text), False


@lru_cache(maxsize=64)
def _compiled(pattern: str, where: str, literal: bool) -> Any:
    try:
        import regex
    except ImportError as error:
        raise TokenizerError(missing_package("regex", error, where)) from None
    if len(pattern) > _LONGEST:
        raise TokenizerError(
            f"{where}: the pattern has {len(pattern):,} characters, expected at most {_LONGEST:,}"
        )
    if literal:
        return regex.compile(regex.escape(pattern))
    repeats = 1
    for count in regex.findall(r"\{(?:\d*,)?(\d+)\}", pattern):
        repeats = min(repeats * max(int(count[:9]), 1), _MOST_REPEATS + 1)
    if repeats > _MOST_REPEATS:
        raise TokenizerError(f"{where}: the pattern {brief(pattern)} repeats too often")
    try:
        return regex.compile(pattern, regex.MULTILINE)  # in Ruby, ^ and $ always match at lines
    except (regex.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise TokenizerError(
            f"{where}: {brief(pattern)} is not a regular expression: {error}"
        ) from None


def missing_package(name: str, error: ImportError, what: str) -> str:
    """The line that says which package is missing, for what, and how to install it."""
    import sys

    return f"{what}: needs the package {name} ({error}): {sys.executable} -m pip install {name}"
