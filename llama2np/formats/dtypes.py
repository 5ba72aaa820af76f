"""The data types of weights, as NumPy dtypes."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from llama2np.formats.checkpoint import CheckpointError


def quiet(function: Callable[..., Any]) -> Callable[..., Any]:
    """Suppress NumPy's warnings about nan and inf: the writers and `inspect` report them."""

    @wraps(function)
    def quietly(*arguments: Any) -> Any:
        with np.errstate(over="ignore", invalid="ignore"):
            return function(*arguments)

    return quietly


def bfloat16() -> np.dtype[Any]:
    """NumPy's bfloat16: float32 without its lower half, from ml_dtypes."""
    from ml_dtypes import bfloat16  # not imported unless a file has it

    dtype: np.dtype[Any] = np.dtype(bfloat16)
    return dtype


DTYPES: dict[str, Callable[[], np.dtype[Any]]] = {
    "float32": lambda: np.dtype("<f4"),
    "float16": lambda: np.dtype("<f2"),
    "bfloat16": bfloat16,
}


def dtype_of(name: str, where: str) -> np.dtype[Any]:
    """The type of that name. Raises CheckpointError if it is not a type of weights."""
    if name not in DTYPES:
        raise CheckpointError(f"{where}: is {name}, expected {', '.join(DTYPES)}")
    return DTYPES[name]()
