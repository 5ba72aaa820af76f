"""The metadata of a GGUF file, with checks of the values that are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.gguf.header import Strings, Value
from llama2np.output import brief

_REQUIRED = object()
_MOST_NUMBERS = 2**20  # of an array of settings, such as one value for each layer


class Metadata(Mapping[str, Value]):
    """Values by key. The methods raise CheckpointError with the file and the key.

    A key that begins with a dot is one of the architecture: ".block_count" is "llama.block_count".
    A `default` is returned where the key is missing.
    """

    def __init__(self, path: str, values: Mapping[str, Value]):
        self.path, self._values = path, values
        name = values.get("general.architecture")
        self.architecture = name if isinstance(name, str) else ""

    def __getitem__(self, key: str) -> Value:
        return self._values[self.full(key)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def full(self, key: str) -> str:
        """The key in the file."""
        return self.architecture + key if key.startswith(".") else key

    def whole(self, key: str, default: Any = _REQUIRED) -> int:
        """A whole number, 0 or more."""
        value = self._value(key, default)
        if value is default:
            return value  # type: ignore[no-any-return]
        if type(value) is not int or not 0 <= value < 2**63:
            raise self._wrong(key, value, "a whole number")
        return value

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        """A finite number."""
        value = self._value(key, default)
        if value is default:
            return value  # type: ignore[no-any-return]
        if type(value) not in (int, float) or not abs(value) < 1e30:
            raise self._wrong(key, value, "a number")
        return float(value)

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        """A string."""
        value = self._value(key, default)
        if value is not default and not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value  # type: ignore[no-any-return]

    def flag(self, key: str, default: Any = _REQUIRED) -> bool:
        """True or False."""
        value = self._value(key, default)
        if value is not default and not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value  # type: ignore[no-any-return]

    def numbers(self, key: str, default: Any = _REQUIRED) -> np.ndarray:
        """An array of numbers: a view."""
        value = self._value(key, default)
        if value is not default and not isinstance(value, np.ndarray):
            raise self._wrong(key, value, "an array of numbers")
        return value  # type: ignore[no-any-return]

    def strings(self, key: str, default: Any = _REQUIRED) -> Strings:
        """An array of strings."""
        value = self._value(key, default)
        if value is not default and not isinstance(value, Strings):
            raise self._wrong(key, value, "an array of strings")
        return value  # type: ignore[no-any-return]

    def same_in_all_layers(self, key: str, default: Any = _REQUIRED) -> int:
        """A whole number that may be an array with a value for each layer: all must be equal."""
        value = self._values.get(self.full(key))
        if not isinstance(value, np.ndarray):
            return self.whole(key, default)
        whole = value.dtype.kind in "iu" and 0 < len(value) <= _MOST_NUMBERS
        if not whole or (value != value[0]).any() or value[0] < 0:
            raise self._wrong(key, value.tolist()[:8], "the same whole number for each layer")
        return int(value[0])

    def _value(self, key: str, default: Any) -> Any:
        value = self._values.get(self.full(key), default)
        if value is _REQUIRED:
            raise CheckpointError(f"{self.path}: has no {self.full(key)}")
        return value

    def _wrong(self, key: str, value: Any, expected: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: {self.full(key)} = {brief(value)}, expected {expected}"
        )
