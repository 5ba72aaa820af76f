"""The command `inspect`: what a checkpoint holds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from llama2np import box
from llama2np.cli.flags import Parser, flag_value, guarded, joined
from llama2np.formats.inspection import describe


def main(argv: Sequence[str], prog: str) -> int:
    """Print what a checkpoint holds; return the exit status."""
    return guarded(prog, lambda: _inspect(_parse(argv, prog)))


def _inspect(options: argparse.Namespace) -> None:
    for line in describe(options.path, options.against):
        print(line, flush=True)


def _parse(argv: Sequence[str], prog: str) -> argparse.Namespace:
    parser = Parser(
        prog=prog,
        description="Say what a checkpoint of any kind that export reads holds.",
        allow_abbrev=False,
    )
    parser.add_argument("path", help=f"the file or folder, or {' or '.join(box.NAMES)}")
    parser.add_argument(
        "--against",
        type=flag_value,
        metavar="FILE",
        help="what it was made from: also say how far each tensor is from that",
    )
    return parser.parse_args(list(joined(argv, parser)))
