"""What the commands that analyse a model share: its flags, and how it is loaded."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from llama2np import box
from llama2np.analysis import interactive
from llama2np.cli import engine
from llama2np.cli.flags import flag_value, piped, text_value
from llama2np.llama import Llama

MODEL_HELP = (
    "the model: a folder, a .gguf or .bin file, the name of a downloaded one (llama2np pull), or a "
    f" bundled one: {' or '.join(box.NAMES)}"
)

TOKENIZER_HELP = (
    "a tokenizer.json, tokenizer.model or tokenizer.bin, or a folder with one (default: the "
    "bundled one for a bundled model, else the one beside the model, else tokenizer.bin in the "
    "current folder)"
)


def add_model(parser: argparse.ArgumentParser, prompt: bool = False) -> None:
    """Add the flags for a model, and for a prompt; they have the names that `run` uses."""
    add = parser.add_argument
    add("model", nargs="?", default=box.STORIES, help=f"{MODEL_HELP} (default {box.STORIES})")
    if prompt:
        add(
            *("-i", "--prompt"),
            type=text_value,
            required=True,
            metavar="TEXT",
            help="the text to read; - reads standard input",
        )
    add(
        *("-z", "--tokenizer"),
        type=flag_value,
        metavar="FILE",
        help=TOKENIZER_HELP,
    )
    engine.add_flags(parser)


def load_model(options: argparse.Namespace) -> Llama:
    """The model that the flags name."""
    engine.set_up(options, lambda note: print(note, file=sys.stderr, flush=True))
    return engine.load(options)


def read_tokens(model: Llama, options: argparse.Namespace) -> list[int]:
    """The tokens of the prompt."""
    return model.prompt_tokens(piped() if options.prompt == "-" else options.prompt)


def plotting(others: Sequence[str] = ()) -> ModuleType:
    """The module that draws. Raises ValueError if matplotlib is missing.

    others: formats that need no matplotlib.
    """
    try:
        from llama2np.analysis import plot
    except ImportError as error:
        way = "".join(f"; FILE{suffix} needs nothing" for suffix in others[:1])
        raise ValueError(
            f"drawing needs matplotlib ({error}): {sys.executable} -m pip install matplotlib{way}"
        ) from None
    return plot


def plotting_to(path: Path) -> ModuleType:
    """The module that draws; an error about the file comes before the work, not after it.

    Raises ValueError for an unknown suffix, and FileNotFoundError if there is no such folder.
    """
    plot = plotting()
    _check_folder(plot.checked(path))
    return plot


def _check_folder(path: Path) -> None:
    folder = path.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(folder))


def drawing(output: Path) -> ModuleType | None:
    """The module that draws a picture of this name; None for HTML. Raises as `plotting_to` does."""
    plot = None
    if output.suffix.lower() not in interactive.SUFFIXES:
        plot = plotting(interactive.SUFFIXES)
        plot.checked(output, interactive.SUFFIXES)
    _check_folder(output)
    return plot
