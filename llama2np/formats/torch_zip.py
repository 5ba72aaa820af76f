"""The format of torch.save since version 1.6: a zip archive of a pickle and a file per storage.

Tensors are views of the mapped archive. The older format without zip, big-endian files and
TorchScript are not supported. torch is not needed.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
from typing import Any

import numpy as np

from llama2np.files import zip_file
from llama2np.formats import kinds, pickle_data
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.dtypes import dtype_of
from llama2np.formats.mapped import map_file
from llama2np.formats.pickle_data import Placeholder, TensorRecord
from llama2np.formats.source import Stored, check_shape
from llama2np.output import brief

_LARGEST_PICKLE = 2**23  # bytes; the pickle of a 70B model has some 100 kB
_MAX_SHARED = 8  # how many tensors may share a value, on average
_LOCAL_HEADER = 30  # bytes before the name in the header of each file in a zip archive


# What zipfile raises for damaged archives, in any version of Python.
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, struct.error, NotImplementedError, ValueError, OverflowError),
    *(OSError, EOFError),
)


def _has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(v, TensorRecord) for v in value.values())


class TorchFile:
    """An opened .pt, .pth or pytorch_model.bin. Raises CheckpointError, and OSError."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = str(path)
        with kinds.named(path, "torch", CheckpointError):
            self._data = map_file(self.path)
            self._files = self._list_files()
        names = [
            name for name in self._files if name.count("/") == 1 and name.endswith("/data.pkl")
        ]
        if len(names) != 1:
            raise CheckpointError(f"{path}: a zip archive, but not one that torch.save wrote")
        self._folder = names[0].removesuffix("data.pkl")
        if bytes(self._file("byteorder", b"little")) != b"little":
            raise CheckpointError(
                f"{path}: byteorder is not little: save it on a little-endian machine"
            )
        pickle = self._file("data.pkl")
        if len(pickle) > _LARGEST_PICKLE:
            raise CheckpointError(
                f"{path}: its pickle has {len(pickle):,} bytes, expected at most "
                f"{_LARGEST_PICKLE:,}"
            )
        try:
            self.content: Any = pickle_data.load(bytes(pickle))
        except pickle_data.PickleError as error:
            raise CheckpointError(f"{path}: {error}") from None

    def tensor(self, name: str, record: TensorRecord) -> Stored:
        """The tensor that a record in `content` describes. Raises CheckpointError."""
        storage, where = record.storage, f"{self.path}: {name}"
        data = self._file(f"data/{storage.key}")
        dtype = dtype_of(storage.dtype, where)
        check_shape(record.shape, where)
        needed = math.prod(record.shape)
        last = sum((n - 1) * stride for n, stride in zip(record.shape, record.strides, strict=True))
        available = len(data) // dtype.itemsize
        if needed and (record.offset + last >= available or needed > available):
            raise CheckpointError(
                f"{where}: needs values up to {record.offset + last + 1:,}, its storage has "
                f"{available:,}: truncated download?"
            )
        values = np.frombuffer(data, dtype, available)[record.offset :]
        strides = [stride * dtype.itemsize for stride in record.strides]
        view = np.lib.stride_tricks.as_strided(values, record.shape, strides, writeable=False)
        return Stored.view(view)

    def tensors(self, content: Any = None) -> dict[str, Stored]:
        """All tensors of a dictionary: `content`, or by default the whole content of the file."""
        content = self._network() if content is None else content
        if not isinstance(content, dict):
            kind = repr(content) if isinstance(content, Placeholder) else type(content).__name__
            raise CheckpointError(f"{self.path}: expected a dictionary of tensors, found {kind}")
        for name, value in content.items():  # skipping one would silently give another network
            if isinstance(value, Placeholder) and (
                "_rebuild" in value.kind.name or str(name).endswith((".weight", ".bias"))
            ):
                raise CheckpointError(f"{self.path}: {name} is {value!r}, expected a plain tensor")
        found = {
            name: self.tensor(name, record)
            for name, record in content.items()
            if isinstance(name, str) and isinstance(record, TensorRecord)
        }
        claimed = sum(tensor.nbytes for tensor in found.values())
        if claimed > _MAX_SHARED * len(self._data):  # a small file could take very long to read
            raise CheckpointError(
                f"{self.path}: its tensors claim {claimed:,} bytes, "
                f"the file has {len(self._data):,}"
            )
        return found

    def _network(self) -> Any:
        """The dictionary of tensors in the file, alone or as the only one in a dictionary, such as
        {"state_dict": {...}, "epoch": 3}. Raises CheckpointError if there are several.
        """
        if not isinstance(self.content, dict) or _has_tensors(self.content):
            return self.content
        inner = {name: value for name, value in self.content.items() if _has_tensors(value)}
        if len(inner) > 1:
            raise CheckpointError(
                f"{self.path}: holds several dictionaries of tensors, {brief(list(inner))}: "
                "expected one: load it with torch and save the one that is the network"
            )
        return next(iter(inner.values()), self.content)

    def _file(self, name: str, default: bytes | None = None) -> memoryview:
        """The bytes of a file in the archive."""
        span = self._files.get(self._folder + name)
        if span is None:
            if default is None:
                raise CheckpointError(f"{self.path}: {self._folder}{name} is missing in it")
            return memoryview(default)
        return memoryview(self._data)[span[0] : span[1]]

    def _list_files(self) -> dict[str, tuple[int, int]]:
        """{name: (start, end)} of the files in the archive, checked against its size."""
        spans: dict[str, tuple[int, int]] = {}
        for entry in self._directory():
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise CheckpointError(f"{self.path}: {entry.filename} is compressed or encrypted")
            header = self._data[entry.header_offset : entry.header_offset + _LOCAL_HEADER]
            lengths = [int.from_bytes(header[at : at + 2], "little") for at in (26, 28)]
            start = entry.header_offset + _LOCAL_HEADER + sum(lengths)
            end = start + entry.file_size
            if entry.header_offset < 0 or header[:4] != b"PK\3\4" or end > len(self._data):
                raise CheckpointError(
                    f"{self.path}: {entry.filename} claims {entry.file_size:,} bytes from byte "
                    f"{start:,} on, the file has {len(self._data):,}: truncated download?"
                )
            if entry.filename in spans:
                raise CheckpointError(f"{self.path}: holds {entry.filename} twice")
            spans[entry.filename] = start, end
        by_start = sorted((span, name) for name, span in spans.items() if span[0] < span[1])
        for (a, name), (b, other) in zip(by_start, by_start[1:], strict=False):
            if a[1] > b[0]:
                raise CheckpointError(f"{self.path}: {name} and {other} overlap")
        return spans

    def _directory(self) -> list[zipfile.ZipInfo]:
        if self._data[:4] != b"PK\3\4":
            legacy = self._data[:2] == b"\x80\x02"
            reason = "written by torch before 1.6, or no model" if legacy else "not a torch file"
            hint = ": load it and save it again with a newer torch" if legacy else ""
            raise CheckpointError(f"{self.path}: {reason}, expected a zip archive{hint}")
        try:
            with zip_file(self._data) as archive:
                return archive.infolist()
        except _ZIP_ERRORS as error:
            raise CheckpointError(f"{self.path}: {error}: truncated download?") from None
