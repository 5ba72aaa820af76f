"""JSON files that describe models, with checks of their fields."""

from __future__ import annotations

import json
import os
from typing import Any

from llama2np.files import open_regular, read_at_most
from llama2np.formats import kinds
from llama2np.formats.checkpoint import CheckpointError
from llama2np.output import brief

# In bytes. As Python objects, JSON takes up to thirty times as much memory. A config has some kB;
# an index, which names each tensor, has 9 MB for the 92,000 tensors of DeepSeek-V3.
LARGEST_CONFIG, LARGEST_INDEX = 2**20, 2**24
_REQUIRED = object()


class JsonFile:
    """An object in a JSON file, whose fields are checked as they are read.

    Raises CheckpointError with the file and the field, and OSError.
    """

    def __init__(self, path: str | os.PathLike[str], limit: int = LARGEST_CONFIG):
        self.path = str(path)
        with open_regular(path) as file:
            data = read_at_most(file, limit)
        if data is None:
            raise CheckpointError(f"{path}: is larger than {limit:,} bytes, the maximum here")
        with kinds.named(path, "json", CheckpointError):
            self._fields = parse_object(data, self.path)

    @classmethod
    def of(cls, fields: dict[str, Any], path: str) -> JsonFile:
        """Fields that are in no file yet; path: what errors call it."""
        made = object.__new__(cls)
        made.path, made._fields = path, fields
        return made

    @property
    def fields(self) -> dict[str, Any]:
        """All fields, unchecked."""
        return self._fields

    def inner(self, key: str) -> JsonFile:
        """The object in that field, as a JsonFile."""
        return JsonFile.of(self._fields[key], f"{self.path}: {key}")

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a field, unchecked."""
        return self._fields.get(key, default)

    def whole(self, key: str, default: Any = _REQUIRED) -> int:
        """A whole number above 0; `default` if the field is missing or null."""
        return int(self._checked(key, default, int, "a whole number above 0"))

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        """A number above 0; `default` if the field is missing or null."""
        return float(self._checked(key, default, (int, float), "a number above 0"))

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false; `default` if the field is missing or null."""
        value = self._fields.get(key)
        if not isinstance(value, bool | None):
            raise CheckpointError(f"{self.path}: {key}={brief(value)}, expected true or false")
        return default if value is None else value

    def _checked(self, key: str, default: Any, kind: type | tuple[type, ...], expected: str) -> Any:
        value: Any = self._fields.get(key)
        if value is None:
            if default is _REQUIRED:
                raise CheckpointError(f"{self.path}: has no {key}")
            return default
        fits = isinstance(value, kind) and not isinstance(value, bool)
        if not fits or not 0 < value < 1e30:
            raise CheckpointError(f"{self.path}: {key}={brief(value)}, expected {expected}")
        return value


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError for anything else, and for a repeated key."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            raise ValueError("a key occurs twice")
        return fields

    try:
        value = json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value
