"""The flags --engine and --threads, for all commands that run a model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from llama2np.cli.flags import choice, number

_ENGINES = ("compiled", "numpy")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add --engine and --threads."""
    add = parser.add_argument
    add(
        "--engine",
        type=choice(*_ENGINES),
        metavar="NAME",
        help="compiled (default; it needs numba), or numpy (slow, but it needs no numba)",
    )
    add(
        "--threads",
        type=number(int, 1, None),
        metavar="N",
        help="number of threads (default: the number of processors)",
    )


def set_up(options: argparse.Namespace, note: Callable[[str], None]) -> None:
    """Choose the engine and the number of threads. On a terminal, `note` reports a compilation.

    Raises ValueError for --threads with the NumPy engine, and if numba is missing.
    """
    options.engine = options.engine or _ENGINES[0]
    if options.engine == "numpy":
        if options.threads is not None:
            raise ValueError("--threads is for --engine compiled: NumPy chooses its own threads")
        return
    try:
        from llama2np import kernels  # here, because the NumPy engine needs no numba
    except ImportError as error:
        raise ValueError(f"{error}: --engine numpy runs without numba, but slowly") from None
    set_threads(options)
    if sys.stderr.isatty():
        kernels.on_first_compile(lambda: note("compiling the kernels, only this first time ..."))


def set_threads(options: argparse.Namespace) -> None:
    """Apply --threads to the kernels that this thread calls: other threads have their own number.

    Raises ValueError.
    """
    if options.threads is not None:
        from llama2np import kernels

        kernels.set_threads(options.threads)
