"""The command `inspect`: a description of a checkpoint."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llama2np import box
from llama2np.cli import engine
from llama2np.cli.flags import Parser, flag_value, guarded, joined
from llama2np.formats import loading
from llama2np.formats.inspection import describe
from llama2np.model.listing import table


def main(argv: Sequence[str], prog: str) -> int:
    """Print the description of a checkpoint; return the exit status."""
    return guarded(prog, lambda: _inspect(_parse(argv, prog)))


def _inspect(options: argparse.Namespace) -> None:
    if options.steps:
        engine.set_up(options, lambda note: print(note, file=sys.stderr, flush=True))
        transformer = loading.transformer(
            options.path, options.engine, activations=options.activations
        )
        print(table(transformer.program, transformer.step_seconds()))
        return
    for line in describe(options.path, options.against):
        print(line, flush=True)


def _parse(argv: Sequence[str], prog: str) -> argparse.Namespace:
    parser = Parser(
        prog=prog,
        description="Describe a checkpoint of any kind that export reads.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "path", help=f"the file or folder, or a bundled model: {' or '.join(box.NAMES)}"
    )
    parser.add_argument(
        "--against",
        type=flag_value,
        metavar="FILE",
        help="the checkpoint it was made from: also print how far each tensor is from its original",
    )
    parser.add_argument(
        "--steps",
        action="store_true",
        help="show the steps of the network instead: inputs, outputs and cost for one token, and "
        "the time of each step on this machine in microseconds",
    )
    engine.add_flags(parser)
    options = parser.parse_args(list(joined(argv, parser)))
    if options.steps and options.against is not None:
        raise ValueError("--against compares tensors, --steps shows steps: use only one of them")
    return options
