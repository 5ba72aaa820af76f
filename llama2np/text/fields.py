"""JSON files of tokenizers, with checks of their fields. Every error names the file and the field.

A file may have 64 MiB: Gemma's tokenizer.json has 33. Python objects need much more memory than
their JSON, so the number of objects in a file is limited before it is parsed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama2np.files import open_regular, read_at_most
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.json_file import parse_object
from llama2np.output import brief
from llama2np.text.errors import TokenizerError

LARGEST = 2**26  # bytes
_MOST = {b"[": 2**21, b"{": 2**18, b":": 2**22, b",": 2**23}  # of these characters in a file


def read_object(path: Path, limit: int = LARGEST) -> Fields:
    """The object in a JSON file. Raises TokenizerError for other contents, and OSError."""
    with open_regular(path) as file:
        data = read_at_most(file, limit)
    if data is None:
        raise TokenizerError(f"{path}: is larger than {limit:,} bytes, the maximum here")
    for character, most in _MOST.items():
        if (count := data.count(character)) > most:
            raise TokenizerError(
                f"{path}: has {count:,} of the character {character.decode()!r}, "
                f"expected at most {most:,}"
            )
    try:
        return Fields(parse_object(data, str(path)), str(path))
    except CheckpointError as error:
        raise TokenizerError(str(error)) from None


class Fields:
    """An object of JSON. `where` names it in errors: the file, and the fields that lead to it."""

    def __init__(self, value: dict[str, Any], where: str):
        self.value, self.where = value, where

    def get(self, key: str) -> Any:
        """The value of a field, unchecked; None if it is missing."""
        return self.value.get(key)

    def text(self, key: str, default: str | None = None) -> str:
        """A text that UTF-8 can encode; `default` if the field is missing or null."""
        return checked_text(self._or(key, default), f"{self.where}: {key}")

    def flag(self, key: str, default: bool = False) -> bool:
        """true or false; `default` if the field is missing or null."""
        return bool(self._of_type(key, self._or(key, default), bool, "true or false"))

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number of 0 or more; `default` if the field is missing or null."""
        return checked_whole(self._or(key, default), f"{self.where}: {key}")

    def list(self, key: str) -> list[Any]:
        """A list; empty if the field is missing or null."""
        found: list[Any] = self._of_type(key, self._or(key, []), list, "a list")
        return found

    def inner(self, key: str) -> Fields | None:
        """An object; None if the field is missing or null."""
        if (value := self.get(key)) is None:
            return None
        return Fields(self._of_type(key, value, dict, "an object"), f"{self.where}: {key}")

    def inners(self, key: str) -> Iterator[Fields]:
        """The objects in a list."""
        for i, value in enumerate(self.list(key)):
            where = f"{self.where}: {key}[{i}]"
            if not isinstance(value, dict):
                raise TokenizerError(f"{where} is {brief(value)}, expected an object")
            yield Fields(value, where)

    def _or(self, key: str, default: Any) -> Any:
        value = self.get(key)
        return default if value is None else value

    def _of_type(self, key: str, value: Any, kind: type, expected: str) -> Any:
        if not isinstance(value, kind):
            raise TokenizerError(f"{self.where}: {key} is {brief(value)}, expected {expected}")
        return value


def checked_text(value: Any, where: str) -> str:
    """`value`, if it is a text without surrogates, which JSON can have and UTF-8 cannot encode."""
    if not isinstance(value, str):
        found = "missing" if value is None else brief(value)
        raise TokenizerError(f"{where} is {found}, expected a text")
    if not value.isascii() and any("\ud800" <= c < "\ue000" for c in value):
        raise TokenizerError(f"{where} is {brief(ascii(value))}, which UTF-8 cannot encode")
    return value


def checked_whole(value: Any, where: str, most: int = 2**31) -> int:
    """`value`, if it is a whole number from 0 to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        found = "missing" if value is None else brief(value)
        raise TokenizerError(f"{where} is {found}, expected a whole number of 0 or more")
    return value
