"""The command `rm`: remove models that were pulled."""

from __future__ import annotations

from collections.abc import Sequence

from llama2np.cli.flags import Parser, guarded, joined
from llama2np.store.pulling import remove


def main(argv: Sequence[str], prog: str) -> int:
    """Remove models; return the exit status."""
    return guarded(prog, lambda: _remove(argv, prog))


def _remove(argv: Sequence[str], prog: str) -> None:
    description = "Remove models that were pulled, or what an interrupted pull has left."
    parser = Parser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("names", nargs="+", metavar="NAME", help="as `llama2np list` shows it")
    for name in parser.parse_args(list(joined(argv, parser))).names:
        print(f"{name} is removed: {remove(name):,} bytes")
