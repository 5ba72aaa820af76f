"""The number formats of tensors in a GGUF file, by their numbers there (ggml_type)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from llama2np.formats.dtypes import DTYPES
from llama2np.model.gguf_blocks import FORMATS


class Type(NamedTuple):
    """A block of `nbytes` bytes holds `values` values of a row."""

    name: str
    values: int
    nbytes: int
    kind: str = ""  # a NumPy type, or a key of gguf_blocks.FORMATS; "" if we cannot read it


def numpy_type(kind: str) -> np.dtype[Any]:
    """The NumPy type of a kind that is not in blocks, little-endian."""
    known: Callable[[], np.dtype[Any]] | None = DTYPES.get(kind)
    return known() if known else np.dtype(kind).newbyteorder("<")


_BLOCKS = {k.number: Type(k.name, k.values, k.nbytes, k.name) for k in FORMATS.values()}
_PLAIN = {
    0: Type("F32", 1, 4, "float32"),
    1: Type("F16", 1, 2, "float16"),
    24: Type("I8", 1, 1, "int8"),
    25: Type("I16", 1, 2, "int16"),
    26: Type("I32", 1, 4, "int32"),
    27: Type("I64", 1, 8, "int64"),
    28: Type("F64", 1, 8, "float64"),
    30: Type("BF16", 1, 2, "bfloat16"),
}
# Files with these can be opened and described. Their tensors cannot be used: most need large tables
# of other people's values.
_UNREADABLE = {
    16: Type("IQ2_XXS", 256, 66),
    17: Type("IQ2_XS", 256, 74),
    18: Type("IQ3_XXS", 256, 98),
    19: Type("IQ1_S", 256, 50),
    21: Type("IQ3_S", 256, 110),
    22: Type("IQ2_S", 256, 82),
    29: Type("IQ1_M", 256, 56),
    39: Type("MXFP4", 32, 17),
    40: Type("NVFP4", 64, 36),
    41: Type("Q1_0", 128, 18),
}
TYPES = _PLAIN | _BLOCKS | {n: each for n, each in _UNREADABLE.items() if n not in _BLOCKS}
NUMBERS = {each.kind: number for number, each in TYPES.items() if each.kind}

# Names for errors: formats that llama.cpp no longer reads, and two that it never writes to files.
GONE = {
    **{4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8"},
    **{36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 9: "Q8_1", 15: "Q8_K"},
}
