"""The command `lens`: the next token that a model would predict after each of its blocks."""

from __future__ import annotations

import argparse
import shutil
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from llama2np.analysis import interactive
from llama2np.analysis.lens import best, labels, logit_lens, pieces_of, spans
from llama2np.cli.flags import Parser, guarded, joined, path_value
from llama2np.cli.model import add_model, drawing, load_model, read_tokens
from llama2np.cli.screen import Screen

_WIDTH = 8  # columns for a piece; a longer one is cut and ends in "…"


def main(argv: Sequence[str], prog: str) -> int:
    """Print the logit lens of a prompt; return the exit status."""
    return guarded(prog, lambda: _lens(_parse(argv, prog)))


def _lens(options: argparse.Namespace) -> None:
    screen, output = Screen(), options.output
    plot = None if output is None else drawing(output)
    model = load_model(options)
    tokens = read_tokens(model, options)
    if output is not None and plot is None:
        interactive.save_lens(output, model, tokens)
        screen.write(f"wrote {output}\n")
        return
    read, rows = spans(model.tokenizer, tokens), ["embedding"]
    rows += [f"block {i}" for i in range(model.config.n_layers)]
    found = [best(logits) for logits in logit_lens(model, tokens)]
    pieces = [labels(model.tokenizer, top) for top, _ in found]
    probabilities = np.array([p for _, p in found])
    if plot is not None:
        plot.save(plot.lens_table(pieces, probabilities, rows, read), output)
        screen.write(f"wrote {output}\n")
        return
    cells = [
        [f"{_fitted(piece)} {p:.2f}" for piece, p in zip(*row, strict=True)]
        for row in zip(pieces, probabilities, strict=True)
    ]
    heads = [f"{_fitted(piece)}     " for piece in pieces_of(read)]
    for line in _panels(["read", *rows], [heads, *cells], shutil.get_terminal_size().columns):
        screen.write(line.rstrip() + "\n")


def _panels(names: list[str], cells: list[list[str]], width: int) -> Iterator[str]:
    """The lines of a table. One wider than `width` is split into panels, one below the other."""
    first = max(map(len, names))
    columns = max((width - first) // (_WIDTH + 7), 1)
    for start in range(0, len(cells[0]), columns):
        if start:
            yield ""
        for name, row in zip(names, cells, strict=True):
            yield "  ".join([name.ljust(first), *row[start : start + columns]])


def _fitted(text: str) -> str:
    """The text, cut or padded to _WIDTH columns; some characters are two columns wide."""
    wide = [2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text]
    if sum(wide) > _WIDTH:
        count = max(n for n in range(len(text)) if sum(wide[:n]) < _WIDTH)
        text, wide = text[:count] + "…", [*wide[:count], 1]
    return text + " " * (_WIDTH - sum(wide))


def _parse(argv: Sequence[str], prog: str) -> argparse.Namespace:
    parser = Parser(
        prog=prog,
        description="The logit lens: after each block, the most probable next piece, and its "
        "probability, if the model ended there. There is a column for each token of the prompt.",
        allow_abbrev=False,
    )
    add_model(parser, prompt=True)
    parser.add_argument(
        *("-o", "--output"),
        type=path_value,
        metavar="FILE",
        help="instead, write an .html to point at, or draw a .png, .svg or .pdf, which need the "
        "extra `plot`",
    )
    return parser.parse_args(list(joined(argv, parser)))
