"""The header of a GGUF file: metadata by key, and a description of each tensor.

Format: ggml's docs/gguf.md; the package `gguf` (gguf_reader.py) is the authority in doubt. All
numbers are little-endian. No count or length is trusted: memory is taken for what was read, and the
numbers of objects are limited.

    b"GGUF", uint32 version, uint64 number of tensors, uint64 number of keys
    for each key: string, uint32 type, value
    for each tensor: string, uint32 number of axes, uint64 each (the last axis first), uint32 type,
        uint64 offset of its bytes from the beginning of the data
    zeros up to a multiple of the alignment, then the data

A string is a uint64 number of bytes, and UTF-8. An array is a uint32 type, a uint64 number of
elements, and the elements.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, overload

import numpy as np

from llama2np.output import brief

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
NUMBERS = {  # value types that are one number, as NumPy types
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?"},
    **{10: "<u8", 11: "<i8", 12: "<f8"},
}
STRING, ARRAY = 8, 9
_LONGEST_NAME = 2**16  # bytes of a key or of the name of a tensor
_LONGEST_STRING = 2**24  # bytes of a value, such as a chat template
_MOST_KEYS = 2**16
_MOST_TENSORS = 2**17
_MOST_STRINGS = 2**22  # in all arrays: the largest vocabularies have 2^18 pieces and as many merges
_MOST_AXES = 4
_length = struct.Struct("<Q").unpack_from


class Strings(Sequence[str]):
    """An array of strings in the file, decoded when they are used."""

    def __init__(self, key: str, data: memoryview, ends: list[int]):
        self._key, self._data, self._ends = key, data, ends  # ends[i + 1]: the end of string i

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Raises ValueError for bytes that are not UTF-8."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        return _decoded(bytes(self._data[self._ends[i] + 8 : self._ends[i + 1]]), self._key)

    def __iter__(self) -> Iterator[str]:
        start = self._ends[0]
        data = bytes(self._data[start : self._ends[-1]])  # faster than many slices of a file
        for first, end in pairwise(self._ends):
            yield _decoded(data[first + 8 - start : end - start], self._key)

    def __repr__(self) -> str:
        return f"Strings({len(self):,} of {self._key})"


Value = int | float | bool | str | np.ndarray | Strings


class Info(NamedTuple):
    """The header's description of a tensor: numbers from 0 to 2^64 - 1, not checked otherwise."""

    name: str
    axes: tuple[int, ...]  # the last axis first
    number: int  # of its type
    offset: int  # of its first byte in the data


class Header(NamedTuple):
    """What is before the data."""

    version: int
    metadata: dict[str, Value]
    spans: dict[str, tuple[int, int]]  # where the type and value of each key are
    infos: list[Info]
    size: int  # bytes, without the zeros up to the data


def parse(data: memoryview) -> Header:
    """The header at the beginning of a file. Raises ValueError if it is not valid."""
    text = _Text(data)
    if bytes(data[:4]) != MAGIC:
        raise ValueError(f"begins with {brief(bytes(data[:4]))}, expected {brief(MAGIC)}")
    text.at = 4
    version = text.whole("<u4")
    if version not in _VERSIONS:
        if version & 0xFFFF == 0:
            raise ValueError("is big-endian: the package gguf has a script gguf_convert_endian")
        way = "get a newer file" if version < min(_VERSIONS) else "llama2np is too old for it"
        raise ValueError(f"is of GGUF version {version}, expected 2 or 3: {way}")
    n_tensors, n_keys = text.whole("<u8"), text.whole("<u8")
    if n_tensors > _MOST_TENSORS or n_keys > _MOST_KEYS:
        raise ValueError(
            f"claims {n_tensors:,} tensors and {n_keys:,} keys of metadata, expected at most "
            f"{_MOST_TENSORS:,} and {_MOST_KEYS:,}"
        )
    metadata: dict[str, Value] = {}
    spans: dict[str, tuple[int, int]] = {}
    for _ in range(n_keys):
        key = text.string(_LONGEST_NAME, "the name of a key")
        if key in metadata:
            raise ValueError(f"the key {brief(key)} occurs twice")
        start = text.at
        metadata[key] = text.value(key)
        spans[key] = start, text.at
    infos = [text.info() for _ in range(n_tensors)]
    return Header(version, metadata, spans, infos, text.at)


class _Text:
    """The bytes of a file and the current place in them."""

    def __init__(self, data: memoryview):
        self.data, self.at = data, 0
        self.strings = 0  # in arrays so far

    def take(self, size: int, what: str) -> memoryview:
        """The next `size` bytes."""
        found = self.data[self.at : self.at + size]
        if len(found) < size:
            raise ValueError(
                f"{what} needs {size:,} bytes at byte {self.at:,}, the file has {len(found):,} "
                "there: truncated download?"
            )
        self.at += size
        return found

    def numbers(self, form: str, count: int, what: str) -> np.ndarray:
        """The next numbers: a view."""
        dtype = np.dtype(form)
        return np.frombuffer(self.take(count * dtype.itemsize, what), dtype)

    def whole(self, form: str) -> int:
        """The next number of the header itself."""
        return int(self.numbers(form, 1, "its header")[0])

    def string(self, limit: int, what: str) -> str:
        """The next string, of at most `limit` bytes."""
        size = self.whole("<u8")
        if size > limit:
            raise ValueError(f"{what} claims {size:,} bytes, expected at most {limit:,}")
        return _decoded(bytes(self.take(size, what)), what)

    def value(self, key: str) -> Value:
        """The next type and value of metadata."""
        kind = self.whole("<u4")
        if kind == STRING:
            return self.string(_LONGEST_STRING, brief(key))
        if kind == ARRAY:
            return self.array(key)
        (number,) = self.numbers(_number_form(kind, key), 1, brief(key))
        # Through text, so that 1e-6 is read as 1e-6, not as the float64 of its float32.
        value: Value = float(str(number)) if number.dtype == np.float32 else number.item()
        return value

    def array(self, key: str) -> np.ndarray | Strings:
        """The next array."""
        kind, count = self.whole("<u4"), self.whole("<u8")
        if kind == ARRAY:
            raise ValueError(f"{brief(key)} is an array of arrays, which no reader knows")
        if kind != STRING:
            return self.numbers(_number_form(kind, key), count, brief(key))
        self.strings += count
        if self.strings > _MOST_STRINGS:
            raise ValueError(
                f"{brief(key)}: there are {self.strings:,} strings, expected at most "
                f"{_MOST_STRINGS:,}"
            )
        return self.many_strings(key, count)

    def many_strings(self, key: str, count: int) -> Strings:
        """The next strings: only their ends are sought, in a loop of a few instructions."""
        data, at, ends = self.data, self.at, [self.at]
        try:
            for _ in range(count):
                at += _length(data, at)[0] + 8
                ends.append(at)
        except (struct.error, OverflowError, IndexError):
            at = len(data) + 1
        if at > len(data):
            raise ValueError(
                f"{brief(key)} claims {count:,} strings, of which the file has {len(ends) - 1:,}: "
                "truncated download?"
            )
        self.at = at
        return Strings(key, data, ends)

    def info(self) -> Info:
        """The next description of a tensor."""
        name = self.string(_LONGEST_NAME, "the name of a tensor")
        axes = self.whole("<u4")
        if not 1 <= axes <= _MOST_AXES:
            raise ValueError(f"{brief(name)} has {axes:,} axes, expected 1 to {_MOST_AXES}")
        shape = tuple(self.numbers("<u8", axes, brief(name)).tolist())
        return Info(name, shape, self.whole("<u4"), self.whole("<u8"))


def _number_form(kind: int, key: str) -> str:
    if kind not in NUMBERS:
        raise ValueError(f"{brief(key)} is of type {kind}, expected a type from 0 to 12")
    return NUMBERS[kind]


def _decoded(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is not UTF-8: {error.reason}, in {brief(data)}") from None
