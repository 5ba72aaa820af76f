"""Typical damage to the bytes of a file, also inside of parts with checksums or lengths."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from copy import deepcopy
from random import Random

import numpy as np

from llama2np.formats.checkpoint import Header
from llama2np.model.config import Config
from tools.hostile_valid import extra_file, torch_archive, trainer_file

# Values that often break parsers: extreme sizes and signs, words of the formats.
_NUMBERS = [0, 1, 2, 3, 64, 255, 256, 2**15, 2**16, 2**24, 2**27, 2**31 - 1, 2**31, 2**32 - 1]
_NUMBERS += [2**40, 2**47, 2**48 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
_FLOATS = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-45, 3e38, -1e30]
_WORDS = [b"24ka", b"l2np", b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"\x80\2", b"}", b"]", b")"]
_WORDS += [b"(", b"\x85", b"q\0", b"h\0", b"t", b"R", b"u", b"s", b"N", b".", b"ccollections\nO\n"]
_WORDS += [b"null", b"[]", b"{}", b"[" * 400, b"-1", b"1e999", b"NaN", b'"', b"\\ud800", b"\\u001b"]
_WORDS += [b"9" * 5000, b"\xff" * 10, b"\xe2\x96\x81", b"<0xFF>", b"<0xZZ>"]
_VALUES = [None, True, False, 0, -1, 1, 3, 2**31, 2**63, 2**200, 0.5, -1.5, 1e308, float("nan")]
_VALUES += ["", "llama", "\x1b[2J", "\ud800", "x" * 300, [], [[]], {}, {"a": []}, [0] * 70]


def damaged_bytes(data: bytes, random: Random, other: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        size = len(changed)
        near = random.choice((size, min(size, 400), min(size, 60)))  # headers are at the start
        at = random.randrange(near) if near else 0
        if random.random() < 0.2:
            at = max(size - 1 - at, 0)  # or, zip's, at the end
        kind = random.randrange(8)
        if kind == 0 and size:
            changed[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            number, width = random.choice(_NUMBERS), random.choice((1, 2, 4, 8))
            number = number % 2 ** (8 * width) if random.random() < 0.8 else -1 % 2 ** (8 * width)
            changed[at : at + width] = number.to_bytes(width, "little")
        elif kind == 2:
            changed[at : at + 4] = struct.pack("<f", random.choice(_FLOATS))
        elif kind == 3:
            del changed[at:]
        elif kind == 4:
            del changed[at : at + random.randint(1, 40)]
        elif kind == 5:
            changed[at:at] = changed[at : at + random.randint(1, 60)]
        elif kind == 6:
            changed[at:at] = random.choice(_WORDS)
        else:
            start = random.randrange(len(other) or 1)
            changed[at : at + random.randint(0, 40)] = other[start : start + random.randint(1, 99)]
    return bytes(changed)


def damaged_json(data: bytes, random: Random) -> bytes:
    value = json.loads(data)
    for _ in range(random.randint(1, 3)):
        inside, key = value, None
        while isinstance(inside, (dict, list)) and inside:
            parent = inside
            key = random.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
            inside = inside[key]
            if random.random() < 0.3:
                break
        if key is None:
            break
        if random.random() < 0.15:
            del parent[key]
        elif isinstance(parent, dict) and random.random() < 0.15:
            parent[random.choice(["\x1b[31m", "\ud800", "", "a.b", str(key) + "2"])] = deepcopy(
                parent[key]
            )
        else:
            parent[key] = deepcopy(random.choice([*_VALUES, *_NUMBERS, inside]))
    return json.dumps(value).encode()


def damaged_header(data: bytes, random: Random) -> bytes:
    """A safetensors file with another JSON header, whose length is correct."""
    length = int.from_bytes(data[:8], "little")
    header = damaged_json(data[8 : 8 + length], random)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def damaged_pickle(_data: bytes, random: Random) -> bytes:
    """A valid archive of a damaged pickle."""
    content, storages = random.choice((trainer_file, extra_file))()
    return torch_archive(damaged_bytes(content, random, content), storages)


def damaged_arrays(data: bytes, random: Random) -> bytes:
    """A valid .npz with correct checksums, with one array damaged, missing or twice."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    at, out = random.randrange(len(members)), io.BytesIO()
    name, content = members[at]
    if random.random() < 0.1:
        members[at : at + 1] = [(name, content)] * random.choice((0, 2))
    elif name in ("config.npy", "identity.npy") and random.random() < 0.7:
        with np.load(io.BytesIO(data)) as arrays:
            changed = damaged_json(str(arrays[name.removesuffix(".npy")]).encode(), random)
        buffer = io.BytesIO()
        np.save(buffer, np.array(changed.decode()))
        members[at] = name, buffer.getvalue()
    else:
        members[at] = name, damaged_bytes(content, random, data)
    compression = random.choice((zipfile.ZIP_STORED,) * 4 + (zipfile.ZIP_DEFLATED,))
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", compression) as archive:
        warnings.simplefilter("ignore")  # about duplicate names
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


def any_shape(random: Random) -> bytes:
    """A .bin of a random small shape, of the correct size, with random bytes as weights."""
    pair = random.choice((1, 2, 3, 8))
    kv_heads, shared = random.randint(1, 3), random.randint(1, 3)
    dim, group = 2 * pair * kv_heads * shared, 0
    hidden_dim = random.randint(1, 40)
    version = random.randrange(3)
    if version == 2:
        group = random.choice([g for g in range(1, dim + 1) if dim % g == 0])
        hidden_dim = group * random.randint(1, 4)
    seq_len = random.choice((1, 2, 5, 100)) if version == 0 else random.choice((1, 5, 2**27 - 1))
    numbers = (dim, hidden_dim, random.randint(1, 3), kv_heads * shared, kv_heads, 20, seq_len)
    header = Header(version, Config(*numbers), random.random() < 0.5, group)
    start = header.to_bytes()
    return start + random.randbytes(header.file_size - len(start))
