"""Text that can be printed on a terminal."""

from __future__ import annotations

import reprlib
from typing import Any

_LONGEST = 2000  # characters of a line; only hostile files cause longer ones


def printable(text: str) -> str:
    """`text` as one line that cannot control a terminal: unprintable characters are escaped."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 4 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def brief(value: Any) -> str:
    """The beginning of repr(value), at a cost that does not depend on the value."""
    try:
        return reprlib.repr(value)[:60]
    except (ValueError, RecursionError):  # an int of thousands of digits
        return type(value).__name__
