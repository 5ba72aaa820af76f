"""The flags of the engine, for all commands that run a model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from llama2np.cli import current
from llama2np.cli.flags import choice, number
from llama2np.llama import Llama
from llama2np.model.engine import ACTIVATIONS

_ENGINES = ("compiled", "numpy")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add --engine, --threads and --activations."""
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
    add_activations(add)


def add_activations(add: Callable[..., Any]) -> None:
    """Add --activations. add: a parser's add_argument."""
    add(
        "--activations",
        type=choice(*ACTIVATIONS),
        metavar="KIND",
        help="of a GGUF model in 2 to 8 bits: round the inputs of its matrices to int8, or to "
        "int8x2, a sum of two such rows, which is nearly exact and slower for prompts (default "
        "int8; int8x2 for smollm2)",
    )


def load(options: argparse.Namespace) -> Llama:
    """The model that the flags name, with its tokenizer. Under mpirun, all ranks share it out."""
    words, rounding = (options.model, options.tokenizer, options.engine), options.activations
    if current.ranks is None:
        return Llama.load(*words, activations=rounding)
    return current.ranks.load(*words, threads=options.threads, activations=rounding)


def set_up(options: argparse.Namespace, note: Callable[[str], None]) -> None:
    """Choose the engine and the number of threads. On a terminal, `note` reports a compilation.

    Raises ValueError for --threads with the NumPy engine, and if numba is missing.
    """
    options.engine = options.engine or _ENGINES[0]
    if options.engine == "numpy":
        if options.activations is not None:
            raise ValueError("--activations is for --engine compiled: NumPy computes in float32")
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
