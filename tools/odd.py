"""Generated hostile files: safetensors headers, tokenizers, and files that are not regular."""

from __future__ import annotations

import json
import os
import socket
import struct
from pathlib import Path
from random import Random

import numpy as np
from safetensors import SafetensorError, safe_open

from llama2np.formats.safetensors_header import BITS

Found = dict[str, tuple[str, tuple[int, ...]]]

# Replacements in a JSON text, some of them legal.
_SPACES = [" ", "\n", "\t\r", "\f", "\v", "\xa0", "\ufeff", "\0", "//x\n"]
_STRINGS = [
    "",
    "a",
    "b",
    "é",
    "日本",
    "😀",
    "\\u00e9",
    "\\ud83d\\ude00",
    "\\ud800",
    "\\udc00\\ud800",
]
_STRINGS += [
    "\\ud83d",
    "\\u0061",
    "\\/",
    "\\x",
    "\\u12",
    "\\u+123",
    "\1",
    "\x7f",
    "\x85",
    "\\\\ud800",
]
_STRINGS += ["__metadata__", "\\u005f_metadata__", "dtype", "\\u0064type", "shape", "data_offsets"]
_NUMBERS = ["0", "1", "2", "4", "8", "-0", "-1", "1.0", "4e0", "0.5", "01", "+1", "1.", ".5", "0x1"]
_NUMBERS += ["1e999", "-1e999", "0e999", "1e-999", "9" * 400, "9" * 300, "9" * 5000, "NaN"]
_NUMBERS += ["Infinity", "-Infinity", "1_0", str(2**63 - 1), str(2**63), str(2**64 - 1), str(2**64)]
_LITERALS = [
    "null",
    "true",
    "false",
    "nul",
    "None",
    "True",
    "[]",
    "{}",
    "[[]]",
    '{"a":null}',
    "'a'",
]
_LITERALS += ["[1,]", '{"a":1,}', '{"a":1,"a":2}', "{1:2}", "[1 2]", "", ","]
_DTYPES = [*BITS, "f32", "F31", "", "F128", "float32"]
_SHAPES = [(), (1,), (2,), (3, 2), (0,), (0, 7), (4, 0), (1,) * 64, (1,) * 65, (0,) * 64, (0,) * 70]
_SHAPES += [(2**40, 0), (2**61, 0), (2**63, 0), (0, 2**63, 2), (2**63, 2, 0), (2**32, 2**32)]


def odd_safetensors(random: Random) -> bytes:
    """A valid file with a few random faults."""
    entries, end = [], 0
    for _ in range(random.randint(0, 4)):
        dtype = random.choice(list(BITS) if random.random() < 0.2 else ["F32", "BF16", "U8"])
        shape = random.choice(_SHAPES[:7] if random.random() < 0.9 else _SHAPES)
        size = int(np.prod(shape, dtype=object)) * BITS[dtype] // 8
        entries.append(_entry(random, dtype, shape, end, end + size))
        end += size if size < 2**16 else 0
    members = [f"{_name(random, i)}:{entry}" for i, entry in enumerate(entries)]
    if random.random() < 0.4:
        members.append(f"{random.choice(_KEYS)}:{_metadata(random)}")
    if random.random() < 0.5:
        random.shuffle(members)
    if members and random.random() < 0.1:
        members.append(random.choice(members))
    text = "{" + ",".join(members) + "}"
    for _ in range(random.choice((0, 0, 0, 0, 0, 0, 1, 2))):
        at = random.randint(0, len(text))
        at = random.choice((0, len(text), at, at))
        text = text[:at] + random.choice(random.choice((_SPACES, _NUMBERS, _LITERALS))) + text[at:]
    header = text.encode(random.choice(["utf-8"] * 30 + ["utf-16", "utf-8-sig", "utf-16-le"]))
    if random.random() < 0.03:
        header = header.replace(b"a", random.choice((b"\xff", b"\xed\xa0\x80", b"\xc0\x80")))
    length = len(header) + random.choice((0,) * 40 + (-1, 1, 8, 2**40, 2**64 - 9 - len(header)))
    data = bytes(max(end + random.choice((0,) * 30 + (-1, 1)), 0))
    return max(length, 0).to_bytes(8, "little") + header + data


_KEYS = ['"__metadata__"'] * 5 + ['"\\u005f_metadata__"', '"__metadata_"']


def _name(random: Random, i: int) -> str:
    return f'"{random.choice(_STRINGS)}"' if random.random() < 0.1 else f'"a{i}"'


def _entry(random: Random, dtype: str, shape: tuple[int, ...], first: int, last: int) -> str:
    """An entry's value as JSON, with at most one field that is odd."""
    fields = {"dtype": json.dumps(dtype), "shape": json.dumps(shape)}
    fields["data_offsets"] = json.dumps([first, last])
    dice = 2 * random.random()
    if dice < 0.1:
        odd = random.choice(random.choice((_NUMBERS, _LITERALS)))
        fields[random.choice(list(fields))] = random.choice((odd, f"[{odd}]", f"[0,{odd}]"))
    elif dice < 0.14:
        fields["dtype"] = random.choice([f'"{random.choice(_DTYPES)}"', f'{{"{dtype}":null}}'])
    elif dice < 0.17:
        fields["dtype"] = f'{{"{dtype}":{random.choice(_LITERALS)}}}'
    elif dice < 0.2:
        fields["data_offsets"] = json.dumps([first + random.choice((-1, 0, 1, 4)), last])
    spelled = [f'"{key}":{value}' for key, value in fields.items()]
    if random.random() < 0.15:
        spelled.append(f'"{random.choice(_STRINGS)}":{_anything(random)}')
    if random.random() < 0.3:
        random.shuffle(spelled)
    if random.random() < 0.03:
        spelled.append(random.choice(spelled))
    if random.random() < 0.05:
        return f"[{','.join(fields.values())}]"
    return "{" + random.choice((",", ",", ", ", " ,\n")).join(spelled) + "}"


def _metadata(random: Random) -> str:
    if random.random() < 0.2:
        return _anything(random)
    values = [random.choice(_STRINGS[:10]) for _ in range(random.randint(0, 3))]
    value = ",".join(f'"{random.choice(_STRINGS[:6])}":"{v}"' for v in values)
    return "{" + value + (random.choice((',"x":1', ',"x":null', "")) if values else "") + "}"


def _anything(random: Random) -> str:
    dice = random.random()
    if dice < 0.3:
        depth = random.choice((1, 2, 60, 62, 63, 124, 125, 126, 127, 300, 2000))
        start, end = random.choice((("[", "]"), ('{"a":', "}"), ('[{"b":', "}]")))
        return start * depth + "0" + end * depth
    if dice < 0.5:
        return f'"{random.choice(_STRINGS)}"'
    return random.choice(random.choice((_NUMBERS, _LITERALS)))


def reference(path: Path) -> Found | None:
    """What the safetensors package finds in a file; None if that, or NumPy, refuses it."""
    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OverflowError):
        return None
    found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    for dtype, shape in found.values():
        try:
            np.ndarray(shape, f"V{-(-BITS[dtype] // 8)}", bytes(0 if 0 in shape else 2**16))
        except (ValueError, OverflowError, TypeError):
            return None
    return found


# Tokenizers


def odd_tokenizer_bin(random: Random) -> bytes:
    """A tokenizer.bin with pieces that are long, many, alike, or not what they should be."""
    longest = random.choice((1, 6, 100, 2047, 2048, 2049, 2**16, 2**32 - 1))
    pieces = [b"<unk>", b"<s>", b"</s>"] + [b"<0x%02X>" % byte for byte in range(256)]
    if random.random() < 0.5:
        random.shuffle(pieces)
    for _ in range(random.choice((0, 1, 3, 60))):
        pieces.append(_odd_piece(random))
    if random.random() < 0.1:
        pieces += [b"x"] * random.choice((5000, 40_000))
    claims = [len(piece) for piece in pieces]
    if random.random() < 0.3:
        at = random.randrange(len(claims))
        claims[at] = random.choice((0, -1, -(2**31), 2**31 - 1, claims[at] + 1, 2**20))
    scores = [random.choice((0.0, -1.0, 1e30, -1e30, float("nan"), float("inf"))) for _ in range(8)]
    data = bytearray(struct.pack("<I", longest))
    for i, (piece, claim) in enumerate(zip(pieces, claims, strict=True)):
        data += struct.pack("<fi", scores[i % 8], claim) + piece
    return bytes(data)


def odd_sentencepiece(random: Random) -> bytes:
    """A tokenizer.model with such pieces."""
    kinds = {b"<unk>": 2, b"<s>": 3, b"</s>": 3}
    pieces = [*kinds] + [b"<0x%02X>" % byte for byte in range(256)]
    pieces += [_odd_piece(random) for _ in range(random.choice((0, 1, 3, 60)))]
    if random.random() < 0.1:
        pieces += [b"w%d" % i for i in range(random.choice((3000, 40_000)))]
    data = bytearray()
    for piece in pieces:
        kind = kinds.get(piece, 6 if piece.startswith(b"<0x") else random.choice((1, 1, 1, 4, 5)))
        score = struct.pack("<f", random.choice((-1.0, 0.0, float("nan"), 1e30)))
        inside = _field(1, piece) + b"\x15" + score + b"\x18" + bytes([kind])
        data += _field(1, inside)
    return bytes(data) + _field(2, b"\x18\2") + _field(3, b"")  # byte pairs


def _odd_piece(random: Random) -> bytes:
    length = random.choice((1, 2, 3, 40, 500, 2047, 2048, 2049, 2**17))
    units = (b"a", b" ", b"\xff", b"\0", "日".encode(), "▁".encode(), b"\x1b[2J", b"<0x41>", b"\n")
    unit = random.choice(units)
    return (unit * (length // len(unit) + 1))[:length]


def _field(number: int, data: bytes) -> bytes:
    """A field of a protobuf message: key, length, bytes."""
    length, size = b"", len(data)
    while size >= 0x80:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data


MADE = {
    "safetensors": odd_safetensors,
    "tokenizer.bin": odd_tokenizer_bin,
    "tokenizer.model": odd_sentencepiece,
}


# What is no regular file

SPECIAL = ("FIFO", "socket", "folder", "/dev/zero", "/dev/full", "/dev/tty", "loop", "nowhere")


def put_special(path: Path, kind: str) -> None:
    """Make a file of that kind, or a link to it."""
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(path.parent)  # the address of a socket has room for 100 characters
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path.name)
        finally:
            os.chdir(here)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"loop": path.name, "nowhere": "nothing/there"}.get(kind, kind))
