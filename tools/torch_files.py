"""Write what torch.save writes, without torch: for tests, and checkpoints of a size.

python -m tools.torch_files FOLDER             a 7B checkpoint in Meta's form, bfloat16, all zeros:
                                               13.5 GB that take no space on the disk
python -m tools.torch_files FOLDER --random    the same, of random values
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage"}
_ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Tensor:
    """A tensor for `pickled`: its values are the file data/KEY of the archive."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    offset: int = 0

    @property
    def nbytes(self) -> int:
        """The bytes of its values."""
        return math.prod(self.shape) * _ITEMSIZE[self.dtype]


def pickled(content: Any) -> bytes:
    """`content` as a pickle of protocol 2, with Tensors as torch pickles them."""
    return b"\x80\2" + _encoded(content) + b"."


def write_archive(path: Path, files: Mapping[str, bytes | int], folder: str = "archive") -> None:
    """Write an uncompressed zip archive (zip64). An int in `files` is that many zeros, a hole."""
    directory = b""
    with open(path, "wb") as file:
        for name, data in files.items():
            name, offset = f"{folder}/{name}".encode(), file.tell()
            size = data if isinstance(data, int) else len(data)
            crc = 0 if isinstance(data, int) else zlib.crc32(data)
            sizes = struct.pack("<HHQQ", 1, 16, size, size)
            common = struct.pack("<5HI4sI", 45, 0, 0, 0, 33, crc, b"\xff" * 4, 2**32 - 1)
            file.write(
                b"PK\3\4" + common + struct.pack("<HH", len(name), len(sizes)) + name + sizes
            )
            if isinstance(data, int):
                file.seek(size, 1)
            else:
                file.write(data)
            extra = struct.pack("<HHQQQ", 1, 24, size, size, offset)
            lengths = struct.pack("<HHHHHII", len(name), len(extra), 0, 0, 0, 0, 2**32 - 1)
            directory += b"PK\1\2" + struct.pack("<H", 45) + common + lengths + name + extra
        start, count = file.tell(), len(files)
        numbers = (44, 45, 45, 0, 0, count, count, len(directory), start)
        file.write(directory + b"PK\6\6" + struct.pack("<QHHIIQQQQ", *numbers))
        file.write(b"PK\6\7" + struct.pack("<IQI", 0, start + len(directory), 1))
        file.write(b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, *[0xFFFF] * 2, *[2**32 - 1] * 2, 0))


def _encoded(value: Any) -> bytes:
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        data = value.encode()
        return b"X" + struct.pack("<I", len(data)) + data
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_encoded, value)) + b"t"
    if isinstance(value, dict):
        pairs = b"".join(_encoded(key) + _encoded(item) for key, item in value.items())
        return b"}(" + pairs + b"u"
    return _encoded_tensor(value)


def _encoded_tensor(tensor: Tensor) -> bytes:
    size = math.prod(tensor.shape)
    strides = tensor.strides
    if strides is None:
        strides = tuple(math.prod(tensor.shape[i + 1 :]) for i in range(len(tensor.shape)))
    storage = b"ctorch\n%s\n" % _STORAGES[tensor.dtype].encode()
    storage = b"(" + _encoded("storage") + storage + _encoded(tensor.key) + _encoded("cpu")
    storage += _encoded(size) + b"tQ"
    numbers = _encoded(tensor.offset) + _encoded(tensor.shape) + _encoded(strides)
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + numbers + b"\x89" + hooks + b"tR"


def _llama_7b() -> dict[str, tuple[int, ...]]:
    """Names and shapes of Llama 2 7B in Meta's consolidated.00.pth."""
    dim, hidden_dim, vocab_size = 4096, 11008, 32000
    shapes = {"tok_embeddings": (vocab_size, dim), "norm": (dim,), "output": (vocab_size, dim)}
    for i in range(32):
        for name in ("wq", "wk", "wv", "wo"):
            shapes[f"layers.{i}.attention.{name}"] = (dim, dim)
        for name, shape in (("w1", (hidden_dim, dim)), ("w2", (dim, hidden_dim))):
            shapes[f"layers.{i}.feed_forward.{name}"] = shape
        shapes[f"layers.{i}.feed_forward.w3"] = (hidden_dim, dim)
        shapes[f"layers.{i}.attention_norm"] = shapes[f"layers.{i}.ffn_norm"] = (dim,)
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--random", action="store_true")
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    params = {"dim": 4096, "n_layers": 32, "n_heads": 32, "multiple_of": 256, "norm_eps": 1e-5}
    (options.folder / "params.json").write_text(json.dumps(params | {"vocab_size": -1}))
    tensors = {
        name: Tensor(str(i), "bfloat16", shape)
        for i, (name, shape) in enumerate(_llama_7b().items())
    }
    files = {"data.pkl": pickled(tensors), "byteorder": b"little", "version": b"3\n"}
    data = {f"data/{tensor.key}": tensor.nbytes for tensor in tensors.values()}
    if options.random:
        values = np.random.default_rng(0).standard_normal(2**26, np.float32) * np.float32(0.02)
        noise = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
        noise *= -(-max(data.values()) // len(noise))
        data = {name: memoryview(noise)[:size] for name, size in data.items()}
    write_archive(options.folder / "consolidated.00.pth", files | data)


if __name__ == "__main__":
    main()
