"""Tests that recognise a kind of file by its first bytes, if a regular expression is not enough.

table.py has the table. These tests do not check that a file is valid.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Callable
from functools import cached_property
from itertools import islice
from pathlib import Path

from llama2np.files import open_regular
from llama2np.model.config import Config

_HEAD = 2**16  # bytes of a file that are read
_LONGEST_PICKLE = 2**20  # bytes; a large model with its optimizer has a pickle of a tenth of it
_MAX_NAMES = 10_000  # of files in a folder
_MAX_BELOW = 100  # of folders in a folder
_LONGEST_PIECE = 2**16
_JSON_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]:]', re.DOTALL)
_TEXT_START = re.compile(rb"(?:\xef\xbb\xbf)?\s*")


class Head:
    """The beginning of a file, or the names in a folder. Raises OSError."""

    def __init__(self, path: Path):
        self.path, self.is_folder = path, path.is_dir()
        self.names: set[str] = set()
        self.data = b""
        if self.is_folder:
            with os.scandir(path) as entries:
                self.names = {entry.name for entry in islice(entries, _MAX_NAMES)}
        else:
            with open_regular(path) as file:
                self.data = file.read(_HEAD)

    @property
    def folder(self) -> Path:
        """The folder itself, or the folder of the file."""
        return self.path if self.is_folder else self.path.parent

    @cached_property
    def models_below(self) -> list[Path]:
        """The folders in the folder that have a model; at most a few are looked at."""
        found = (self.path / name for name in sorted(self.names)[:_MAX_BELOW])
        # Unlike Path.is_file, this raises no error for a folder that may not be read.
        return [folder for folder in found if os.path.isfile(folder / "config.json")]

    @cached_property
    def text(self) -> bytes:
        """The data without a byte order mark and white space before it."""
        match = _TEXT_START.match(self.data)
        return self.data[match.end() if match else 0 :]

    @cached_property
    def keys(self) -> set[str]:
        """The keys of a JSON object, not of objects in it, as far as the head has them."""
        keys: set[str] = set()
        if self.text[:1] != b"{":
            return keys
        depth, last = 0, b""
        for token in _JSON_TOKEN.findall(self.text):
            depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1}.get(token, 0)
            if token == b":" and depth == 1:
                keys.add(last.strip(b'"').decode(errors="replace"))
            last = token
        return keys

    def contains(self, word: bytes) -> bool:
        """Whether the first megabyte contains this word. Raises OSError."""
        with open_regular(self.path) as file:
            return word in file.read(_LONGEST_PICKLE)

    @property
    def member(self) -> str:
        """The name of the first file in a zip archive; "" for other files."""
        if self.data[:4] != b"PK\3\4":
            return ""
        length = int.from_bytes(self.data[26:28], "little")
        return self.data[30 : 30 + length].decode(errors="replace")


Sign = Callable[[Head], bool]


def has_key(*names: str) -> Sign:
    """Recognise a JSON object with one of these keys."""
    return lambda head: not head.keys.isdisjoint(names)


def is_torch(head: Head) -> bool:
    """A zip archive as torch.save writes it: NAME/data.pkl and so on."""
    _, slash, name = head.member.partition("/")
    return bool(slash) and name.split("/")[0] in ("data.pkl", "version", "byteorder", "code")


def is_safetensors(head: Head) -> bool:
    """uint64 length of a JSON header, and its beginning."""
    length = int.from_bytes(head.data[:8], "little")
    return 2 <= length < 2**40 and re.match(rb'\{\s*["}]', head.data[8:]) is not None


def is_version0(head: Head) -> bool:
    """Seven int32 that are a valid Config; vocab_size may be negative."""
    if len(head.data) < 28:
        return False
    numbers: list[int] = list(struct.unpack_from("<7i", head.data))
    numbers[5] = abs(numbers[5])
    try:
        Config(*numbers)  # type: ignore[arg-type]
    except ValueError:
        return False
    return max(numbers) < 2**27


def is_tokenizer_bin(data: bytes) -> bool:
    """The length of the longest piece, and three pieces that are not longer."""
    at = 4
    longest = int.from_bytes(data[:4], "little")
    for _ in range(3):
        if len(data) < at + 8 or longest > _LONGEST_PIECE:
            return False
        score, length = struct.unpack_from("<fi", data, at)
        piece = data[at + 8 : at + 8 + max(length, 0)]
        if not 0 < length <= longest or len(piece) != length or b"\0" in piece:
            return False
        if not math.isfinite(score) or 0 < abs(score) < 1e-30:  # an integer, interpreted as a float
            return False
        at += 8 + length
    return True


def is_sentencepiece(data: bytes) -> bool:
    """Protobuf: field 1, a piece; in it field 1, its text; then its score, its type or a piece."""
    if len(data) < 4 or data[0] != 10 or data[2] != 10 or data[3] + 2 > data[1]:
        return False
    return data[4 + data[3] : 5 + data[3]] in (b"\x15", b"\x18", b"\n", b"")


def is_text(head: Head) -> bool:
    """UTF-8 without control characters."""
    # Without a character that is cut off.
    data = head.text[:-4] if len(head.data) == _HEAD else head.text
    try:
        text = data.decode(errors="ignore" if data is not head.text else "strict")
    except UnicodeDecodeError:
        return False
    return text != "" and all(c.isprintable() or c.isspace() for c in text)
