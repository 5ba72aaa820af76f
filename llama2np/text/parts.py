"""Functions that the readers of the parts of a tokenizer.json share."""

from __future__ import annotations

from collections.abc import Iterable

from llama2np.output import brief
from llama2np.text.errors import TokenizerError
from llama2np.text.fields import Fields, checked_text
from llama2np.text.patterns import Pattern

_DEEPEST, _LONGEST = 8, 64  # of sequences in sequences, and of the parts in one


def sequence(fields: Fields, key: str, depth: int) -> list[Fields]:
    """The parts of a "Sequence". Raises TokenizerError, also for too many."""
    parts = fields.list(key)
    if depth >= _DEEPEST or len(parts) > _LONGEST:
        raise TokenizerError(
            f"{fields.where[:200]}: has too many parts, expected at most {_LONGEST} in a sequence "
            f"and {_DEEPEST} sequences in each other"
        )
    return list(fields.inners(key))


def pattern_of(fields: Fields) -> str | Pattern:
    """The field "pattern": a plain text, or a compiled regular expression."""
    pattern = fields.inner("pattern") or Fields({}, f"{fields.where}: pattern")
    if (text := pattern.get("String")) is not None:
        return checked_text(text, f"{pattern.where}: String")
    return Pattern(pattern.text("Regex"), f"{pattern.where}: Regex")


def unsupported(fields: Fields, what: str, kind: str, known: Iterable[str]) -> TokenizerError:
    """The error for a type of a part that does not exist here."""
    return TokenizerError(
        f"{fields.where}: the {what} {brief(kind)} is not supported; these are: "
        f"{', '.join(['Sequence', *known])}"
    )
