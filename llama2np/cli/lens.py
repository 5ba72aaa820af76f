"""The command `lens`: what a model would say after each of its blocks."""

from __future__ import annotations

import argparse
import shutil
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from llama2np.analysis.lens import best, labels, logit_lens
from llama2np.cli.flags import Parser, guarded, joined, path_value
from llama2np.cli.model import add_model, load_model, plotting, read_tokens
from llama2np.cli.screen import Screen

_WIDTH = 8  # of a piece; a longer one ends in "…"


def main(argv: Sequence[str], prog: str) -> int:
    """Print the logit lens of a prompt; return the exit status."""
    return guarded(prog, lambda: _lens(_parse(argv, prog)))


def _lens(options: argparse.Namespace) -> None:
    screen, plot = Screen(), None
    if options.output is not None:
        plot = plotting()
        plot.checked(options.output)
    model = load_model(options)
    tokens = read_tokens(model, options)
    read, rows = labels(model.tokenizer, tokens), ["embedding"]
    rows += [f"block {i}" for i in range(model.config.n_layers)]
    found = [best(logits) for logits in logit_lens(model, tokens)]
    pieces = [labels(model.tokenizer, likeliest) for likeliest, _ in found]
    probabilities = np.array([p for _, p in found])
    if plot is not None:
        plot.save(plot.lens_table(pieces, probabilities, rows, read), options.output)
        screen.write(f"wrote {options.output}\n")
        return
    cells = [
        [f"{_fitted(piece)} {p:.2f}" for piece, p in zip(*row, strict=True)]
        for row in zip(pieces, probabilities, strict=True)
    ]
    heads = [f"{_fitted(piece)}     " for piece in read]
    for line in _panels(["read", *rows], [heads, *cells], shutil.get_terminal_size().columns):
        screen.write(line.rstrip() + "\n")


def _panels(names: list[str], cells: list[list[str]], width: int) -> Iterator[str]:
    """The lines of a table, cut into as many below each other as the width asks for."""
    first = max(map(len, names))
    across = max((width - first) // (_WIDTH + 7), 1)
    for at in range(0, len(cells[0]), across):
        if at:
            yield ""
        for name, row in zip(names, cells, strict=True):
            yield "  ".join([name.ljust(first), *row[at : at + across]])


def _fitted(text: str) -> str:
    """Text of just _WIDTH columns; some letters take two."""
    wide = [2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text]
    if sum(wide) > _WIDTH:
        count = max(n for n in range(len(text)) if sum(wide[:n]) < _WIDTH)
        text, wide = text[:count] + "…", [*wide[:count], 1]
    return text + " " * (_WIDTH - sum(wide))


def _parse(argv: Sequence[str], prog: str) -> argparse.Namespace:
    parser = Parser(
        prog=prog,
        description="The logit lens: the likeliest next piece, and its probability, if the model "
        "stopped after each of its blocks. A column for each token that is read.",
        allow_abbrev=False,
    )
    add_model(parser, prompt=True)
    parser.add_argument(
        *("-o", "--output"),
        type=path_value,
        metavar="FILE",
        help="draw it into a .png, .svg or .pdf instead; needs the extra `plot`",
    )
    return parser.parse_args(list(joined(argv, parser)))
