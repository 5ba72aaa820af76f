"""Checks of arguments at the call: errors name the argument, and what was expected and found.

NumPy's numbers are accepted like Python's; True and False are not numbers; None means the default.
Each check raises ValueError with a text of one line, and returns the value as a plain Python
object.
"""

from __future__ import annotations

import functools
import inspect
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

import numpy as np

from llama2np.output import brief

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")
R = TypeVar("R")

_SHOWN = (type(None), bool, int, float, complex, str, bytes, list, tuple, dict, np.generic)


def wrong(name: str, expected: str, value: object) -> ValueError:
    """The error for an argument: what it must be, and its value, or its type if it is an object."""
    found = brief(value) if isinstance(value, _SHOWN) else f"of type {type(value).__name__}"
    return ValueError(f"{name} must be {expected}, not {found}")


def whole(name: str, value: object, low: int | None = None) -> int:
    """`value` as an int of `low` or more. 2.0 is a whole number, 2.5, True and "2" are not."""
    found = value if type(value) is int else _integer(_plain(value))  # fast for the usual case
    if found is None:
        raise wrong(name, "a whole number", value)
    if low is not None and found < low:
        raise wrong(name, f"{low} or more", found)
    return found


def _integer(value: Any) -> int | None:
    """The int that is equal to a Python object; None if there is none."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def number(name: str, value: object) -> float:
    """`value` as a float. The caller must check for nan and inf."""
    found = _plain(value)
    if isinstance(found, int | float) and not isinstance(found, bool):
        try:
            return float(found)
        except OverflowError:  # an int of more than 308 digits
            pass
    raise wrong(name, "a number", value)


def _plain(value: object) -> object:
    """The Python number of a NumPy number, or of an array without dimensions."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    return value


def text(name: str, value: object) -> str:
    """`value`, if it is a str."""
    if not isinstance(value, str):
        raise wrong(name, "text, a str", value)
    return value


def texts(name: str, value: object) -> list[str]:
    """A str, or an iterable of them, as a list."""
    value = _plain(value)
    if isinstance(value, str):
        return [value]
    if isinstance(value, Iterable) and not isinstance(value, bytes | bytearray | Mapping):
        found = list(value)
        if all(isinstance(one, str) for one in found):
            return found
        value = found
    raise wrong(name, "a str or a list of them", value)


def token_list(
    name: str, value: object, vocab_size: int | None = None, also: str = ""
) -> list[int]:
    """A sequence of tokens as a list; with `vocab_size`, they must be below it.

    also: what else the caller accepts, for the error.
    """
    expected = f"{also}a list of tokens, which are whole numbers"
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | bytearray | Mapping):
        raise wrong(name, expected, value)
    found = value if isinstance(value, np.ndarray) else list(value)
    try:
        array = np.asarray(found)
    except (ValueError, OverflowError):  # nested lists of different lengths
        raise wrong(name, expected, found) from None
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise wrong(name, expected, found)
    tokens: list[int] = array.tolist()
    if vocab_size is not None and tokens and not 0 <= min(tokens) <= max(tokens) < vocab_size:
        worst = min(tokens) if min(tokens) < 0 else max(tokens)
        raise ValueError(f"token {worst} is not in the vocabulary of 0 to {vocab_size - 1}")
    return tokens


def function(name: str, value: F | None, of: str) -> F:
    """`value`, if it can be called; of: a description of its arguments."""
    if not callable(value):
        raise wrong(name, f"a function of {of}", value)
    return value


def having(name: str, value: object, expected: str, *attributes: str) -> None:
    """Raise ValueError unless `value`, of any class, has all of these attributes."""
    if not all(hasattr(value, attribute) for attribute in attributes):
        raise wrong(name, expected, value)


def path_like(name: str, value: Any) -> str | os.PathLike[str]:
    """`value`, if it can be a path."""
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise wrong(name, "a path, a str or a pathlib.Path", value)
    return value


def none_means_default(called: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function: None means the default of each argument that has one."""
    parameters = inspect.signature(called).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    names = tuple(parameters)

    @functools.wraps(called)
    def call(*arguments: Any, **options: Any) -> R:
        for i, argument in enumerate(arguments[: len(names)]):
            if argument is None and names[i] in defaults:
                arguments = (*arguments[:i], defaults[names[i]], *arguments[i + 1 :])
        missing = {
            name: defaults[name] for name in options.keys() & defaults if options[name] is None
        }
        return called(*arguments, **options | missing)

    return call
