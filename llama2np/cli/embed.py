"""The command `embed`: vectors of texts, by an encoder such as BERT."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from llama2np.cli import bulk
from llama2np.cli.flags import Parser, choice, guarded, joined, number
from llama2np.cli.model import add_model


def main(argv: Sequence[str], prog: str) -> int:
    """Write a vector for each text; return the exit status, 1 if a line is bad."""
    return guarded(prog, lambda: _embed(_parse(argv, prog), prog))


def _embed(options: argparse.Namespace, prog: str) -> None:
    of_task = {
        "pooling": options.pooling,
        "normalize": None if not options.no_normalize else False,
        "max_tokens": options.max_tokens,
    }
    bulk.run(options, prog, "embed", of_task)


def _parse(argv: Sequence[str], prog: str) -> argparse.Namespace:
    parser = Parser(
        prog=prog,
        description="Turn each text of files into a vector whose dot product with another one says "
        "how similar the two texts are. An interrupted run goes on if the command is run again.",
        allow_abbrev=False,
    )
    add_model(parser)
    bulk.add_prompts(parser, required=True)
    add = parser.add_argument
    add(
        "--pooling",
        type=choice("mean", "cls"),
        metavar="NAME",
        help="mean of the last hidden states, or cls, that of the first token (default: what a "
        "sentence-transformers folder says, else mean)",
    )
    add("--no-normalize", action="store_true", help="do not divide by the vectors' lengths")
    add(
        "--max-tokens",
        type=number(int, 2, None),
        metavar="N",
        help="cut longer texts off there (default: the folder's, or what the network reads)",
    )
    return parser.parse_args(list(joined(argv, parser)))
