"""The fields of a request's JSON body, checked one by one."""

from __future__ import annotations

import json
import math
from typing import Any

from llama2np.output import brief
from llama2np.serve.errors import ApiError

_NONE: Any = object()


class Fields:
    """An object in JSON. null is the same as a field that is missing.

    Each method returns a field's value or the default, and raises an ApiError that names the field.
    """

    def __init__(self, values: Any, where: str = ""):
        if not isinstance(values, dict):
            raise ApiError(400, f"expected a JSON object{where}, found {brief(values)}")
        self.values = values

    @classmethod
    def parsed(cls, body: bytes) -> Fields:
        """The object that a body holds."""
        try:
            values = json.loads(body, parse_constant=_no_constant)
        except RecursionError:
            raise ApiError(400, "the body has too many levels of JSON") from None
        except ValueError as error:
            raise ApiError(400, f"the body is not JSON: {error}") from None
        return cls(values)

    def get(self, name: str, default: Any = None) -> Any:
        """A value of any type."""
        value = self.values.get(name)
        return default if value is None else value

    def wrong(self, name: str, expected: str) -> ApiError:
        """The error for a field."""
        found = brief(self.values.get(name))
        return ApiError(400, f"{name} must be {expected}, not {found}", name)

    def text(self, name: str, default: Any = _NONE) -> str:
        """A text."""
        value = self.get(name, default)
        if value is not default and not isinstance(value, str) or value is _NONE:
            raise self.wrong(name, "a text")
        return value  # type: ignore[no-any-return]

    def flag(self, name: str) -> bool:
        """true or false, by default false."""
        value = self.get(name, False)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def whole(self, name: str, default: Any, low: int, high: int) -> Any:
        """A whole number from `low` to `high`."""
        value = self.get(name, default)
        if value is default:
            return value
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or value != math.floor(value) or not low <= value <= high:
            raise self.wrong(name, f"a whole number from {low} to {high:,}")
        return int(value)

    def number(self, name: str, default: Any, low: float, high: float) -> Any:
        """A number from `low` to `high`."""
        value = self.get(name, default)
        if value is default:
            return value
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
        ):
            raise self.wrong(name, f"a number from {low} to {high}")
        return float(value)

    def texts(self, name: str, most: int) -> list[str]:
        """A text, or a list of at most `most` of them."""
        value = self.get(name, [])
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            raise self.wrong(name, "a text or a list of texts")
        if len(found) > most:
            raise ApiError(400, f"{name} has {len(found)} texts, expected at most {most}", name)
        return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
