"""The command `pull`: download a model by its name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llama2np.cli.flags import Parser, guarded, joined, path_value
from llama2np.store.catalogue import CATALOGUE
from llama2np.store.pulling import pull, pull_into


def main(argv: Sequence[str], prog: str) -> int:
    """Download a model; return the exit status."""
    return guarded(prog, lambda: _pull(_parse(argv, prog)))


def _pull(options: argparse.Namespace) -> None:
    if options.folder is None:
        pull(options.name, _tell)
    else:
        pull_into(options.folder, options.name, _tell)


def _tell(text: str) -> None:
    """Print a message: beside a bar on standard error, else on standard output."""
    print(text, file=sys.stderr if sys.stderr.isatty() else sys.stdout, flush=True)


def _parse(argv: Sequence[str], prog: str) -> argparse.Namespace:
    parser = Parser(
        prog=prog,
        description="Download a model. Every command then takes its name in place of a path. "
        "The same command resumes an interrupted download.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "name",
        help=f"{', '.join(CATALOGUE)}; or ORG/NAME on huggingface.co; or ORG/NAME:FILE, where FILE "
        "is a .gguf there or a quantization such as Q4_K_M",
    )
    parser.add_argument(
        "--folder",
        type=path_value,
        metavar="FOLDER",
        help="put the files of one of the short names there, instead of into the cache",
    )
    options = parser.parse_args(list(joined(argv, parser)))
    options.folder = None if options.folder is None else Path(options.folder)
    return options
