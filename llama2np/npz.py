"""Arrays in a .npz (NumPy's zip of arrays), read without pickle, and without trusting its sizes."""

from __future__ import annotations

import math
import zipfile

import numpy as np

_HEADERS = {  # by the version of the .npy format
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def array(
    archive: zipfile.ZipFile, name: str, like: np.ndarray | None = None, most: int | None = None
) -> np.ndarray:
    """Read an array of an open archive. It is read-only, and takes the memory of its bytes.

    like: an array whose shape and dtype it must have; most: the bytes that it may have. Both are
    checked before anything is read. Raises ValueError that says what is wrong, and what zipfile and
    NumPy raise for damaged files, which are many types of exceptions.
    """
    if f"{name}.npy" not in archive.namelist():
        raise ValueError(f"it has no {name}")
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed: a small file could expand to any size")
    if most is not None and info.file_size > most:
        raise ValueError(f"its {name} is larger than {most:,} bytes")
    with archive.open(info) as member:
        shape, by_columns, dtype = _HEADERS[np.lib.format.read_magic(member)](member)
        if like is not None and (shape, dtype) != (like.shape, like.dtype):
            expected = f"expected {like.dtype} {like.shape}"
            raise ValueError(f"{name} is {dtype} {shape}, {expected}")
        values = member.read()
    # NumPy's own reader allocates the size that the header claims before it checks it.
    if dtype.hasobject or len(values) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} has {len(values):,} bytes for {dtype} {shape}")
    return np.ndarray(shape, dtype, values, order="F" if by_columns else "C")


def text(archive: zipfile.ZipFile, name: str, most: int) -> str:
    """Read an array that is one string, of at most `most` bytes. Raises as `array` does."""
    found = array(archive, name, most=most)
    if found.dtype.kind != "U" or found.shape:
        raise ValueError(f"{name} is {found.dtype} {found.shape}, expected a text")
    # NumPy's own conversion to str would let through numbers that are no characters.
    data = found.astype(found.dtype.newbyteorder("<")).tobytes()
    return data.decode("utf-32-le").rstrip("\0")
