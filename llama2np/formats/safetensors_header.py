"""The header of a safetensors file: JSON, read one tensor at a time.

json.loads would take thirty times the size of the header, which may be 100 MB. It also accepts
some texts that the safetensors package (Rust's serde_json) rejects, and rejects some that it
accepts. This module accepts what the package accepts, even its special cases: an entry may be a
list of its three values, and if a name occurs twice, the last entry counts. The only exception: an
entry of more than two million characters is rejected here.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import chain
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, NamedTuple

from llama2np.output import brief

BITS = {  # bits of a value, for each of the format's types
    **{"F32": 32, "F16": 16, "BF16": 16, "F64": 64, "C64": 64, "F4": 4, "BOOL": 8},
    **{"U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64},
    **{"F6_E2M3": 6, "F6_E3M2": 6, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8},
    **{"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
}
_METADATA = "__metadata__"
_FIELDS = ("dtype", "shape", "data_offsets")
_CHUNK = 2**16  # bytes decoded at once
_SIZES = (2**8, 2**12, 2**16, 2**21)  # numbers of characters in which the end of an entry is sought
_DEEPEST = 125  # the deepest nesting in extra fields of an entry
_WHITE = " \t\n\r"
_SPACE = re.compile(f"[{_WHITE}]*")
_NUMBER = "(?:0|[1-9][0-9]{0,17})"
_USUAL = re.compile(
    rf'{{"dtype":"(\w+)","shape":\[((?:{_NUMBER}(?:,{_NUMBER}){{0,9}})?)\],'
    rf'"data_offsets":\[({_NUMBER}),({_NUMBER})\]}}'
)
_SURROGATE = re.compile("[\ud800-\udfff]")


class Entry(NamedTuple):
    """The header's description of a tensor: numbers from 0 to 2^64 - 1, not checked otherwise."""

    dtype: str  # a key of BITS
    shape: tuple[int, ...]
    first: int  # its first byte in the data
    last: int  # the byte after its last one


def entries(header: memoryview) -> Iterator[tuple[str, Entry]]:
    """Yield the name and the entry of each tensor, in the order of the header.

    Raises ValueError if the header is not valid.
    """
    _check_utf8(header)
    # Each byte is one character here; names are decoded as UTF-8 later.
    text = _Text(str(header, "latin-1"))
    described = False
    for name in text.members():
        if name != _METADATA:
            yield name, text.usual_entry() or _entry(name, text.value())
        elif described:
            raise ValueError(f"{_METADATA} occurs twice")
        else:
            described = True
            text.metadata()
    if text.peek():
        raise _invalid(f"it does not end at character {text.at:,}")


class _Text:
    """A JSON text and the current place in it."""

    def __init__(self, text: str):
        self.text = text
        self.at = 0

    def peek(self) -> str:
        """The next character after white space, "" at the end."""
        found = self.text[self.at : self.at + 1]
        if found in _WHITE and (space := _SPACE.match(self.text, self.at)):
            self.at = space.end()
            found = self.text[self.at : self.at + 1]
        return found

    def take(self, expected: str) -> str:
        """Read one of the expected characters."""
        found = self.peek()
        if found not in expected or not found:
            what = " or ".join(expected)
            raise _invalid(f"{found!r} at character {self.at:,}, expected {what}")
        self.at += 1
        return found

    def members(self) -> Iterator[str]:
        """Yield the keys of an object; the caller must read each value before the next key."""
        if self.peek() != "{":
            raise _invalid("expected a JSON object")
        self.at += 1
        if self.peek() == "}":
            self.at += 1
            return
        end = ","
        while end == ",":
            name = self.string()
            self.take(":")
            yield name
            end = self.take(",}")

    def string(self) -> str:
        """Read a string."""
        start = self.at
        text = self.skip_string()
        if text.isascii():
            return text
        quoted = self.text[start : self.at].encode("latin-1").decode()
        return str(json.loads(quoted))

    def skip_string(self) -> str:
        """Read a string; return it with one character for each byte, also if it is not ASCII."""
        self.take('"')
        start = self.at
        try:
            text, self.at = scanstring(self.text, start, True)
        except ValueError as error:
            raise _invalid(str(error)) from None
        _check_whole(text)
        return str(text)

    def metadata(self) -> None:
        """Read and discard the metadata: null, or an object of strings."""
        if self.peek() == "n" and self.text.startswith("null", self.at):
            self.at += len("null")
            return
        for _ in self.members():
            self.skip_string()

    def usual_entry(self) -> Entry | None:
        """Read an entry in the usual spelling, quickly; None for another spelling."""
        match = _USUAL.match(self.text, self.at)
        if not match or match[1] not in BITS:
            return None
        self.at = match.end()
        return Entry(match[1], _shape(match[2]), int(match[3]), int(match[4]))

    def value(self) -> Any:
        """Read an object or a list, as `_scan` returns it; None, and nothing read, for others."""
        if self.peek() not in ("{", "["):
            return None
        for size in _SIZES:  # the longest one limits the number of objects
            try:
                value, end = _scan(self.text[self.at : self.at + size], 0)
            except (StopIteration, ValueError, RecursionError) as error:
                problem = error
            else:
                self.at += end
                return value
        if len(self.text) > self.at + size:
            problem = ValueError(f"or an entry of more than {size:,} characters: {problem}")
        raise _invalid(f"{problem} (in the value at character {self.at:,})")


@lru_cache(512)
def _shape(numbers: str) -> tuple[int, ...]:
    return tuple(map(int, numbers.split(","))) if numbers else ()


class _Object(list[tuple[str, Any]]):
    """The keys and values of a JSON object, in which a key may occur twice."""


def _integer(text: str) -> float:
    """Rust's rule: a number that is not a uint64, such as -0, is a floating point number."""
    return _real(text) if text[0] == "-" or len(text) > 20 or int(text) >= 2**64 else int(text)


def _real(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number is out of range")
    return number


def _constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


_decoder = json.JSONDecoder(
    object_pairs_hook=_Object, parse_int=_integer, parse_float=_real, parse_constant=_constant
)
_scan: Callable[[str, int], tuple[Any, int]] = _decoder.scan_once  # type: ignore[attr-defined]


def _entry(name: str, value: Any) -> Entry:
    """The entry in a JSON object, or in a list of the same values."""
    if isinstance(value, _Object):
        fields: dict[str, Any] = {}
        for key, part in value:
            if key not in _FIELDS:
                _check_ignored(key, part)
            elif key in fields:
                raise ValueError(f"{name}: {key} occurs twice")
            else:
                fields[key] = part
        value = [fields.get(key) for key in _FIELDS]
    if not isinstance(value, list) or len(value) != len(_FIELDS):
        raise ValueError(f"{name}: expected dtype, shape and two data_offsets")
    dtype, shape, offsets = value
    if isinstance(dtype, _Object) and len(dtype) == 1 and dtype[0][1] is None:
        dtype = dtype[0][0]  # {"F32": null} is another spelling of an enumeration in Rust
    numbers = _whole_numbers(shape) and _whole_numbers(offsets) and len(offsets) == 2
    if type(dtype) is not str or not numbers:
        raise ValueError(
            f"{name}: expected dtype, shape and two data_offsets, found {brief(dtype)}, "
            f"{brief(shape)}, {brief(offsets)}"
        )
    if dtype not in BITS:
        raise ValueError(f"{name}: is {dtype}, expected {', '.join(BITS)}")
    return Entry(dtype, tuple(shape), *offsets)


def _whole_numbers(value: Any) -> bool:
    return type(value) is list and {*map(type, value)} <= {int}


def _check_ignored(key: str, value: Any) -> None:
    """Raise ValueError for what is refused even where an entry may have anything."""
    _check_whole(key)
    unread: list[Iterator[Any]] = [iter([value])]  # of the lists that we are in
    while unread:
        for part in unread[-1]:
            if isinstance(part, str):
                _check_whole(part)
            elif isinstance(part, list):
                if len(unread) > _DEEPEST:
                    raise _invalid("lists or objects are nested too deeply")
                unread.append(
                    chain.from_iterable(part) if isinstance(part, _Object) else iter(part)
                )
                break
        else:
            unread.pop()


def _check_whole(text: str) -> None:
    if not text.isascii() and _SURROGATE.search(text):
        raise _invalid("a string has a lone surrogate, \\ud800 to \\udfff")


def _check_utf8(header: memoryview) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(header), _CHUNK):
            decoder.decode(bytes(header[start : start + _CHUNK]))
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _invalid(f"{error.reason}, expected UTF-8") from None


def _invalid(problem: str) -> ValueError:
    return ValueError(f"its header is not valid JSON: {problem}")
