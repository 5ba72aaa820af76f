"""The command `attend`: a picture of the attention maps of a model's heads."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from llama2np.analysis import interactive
from llama2np.analysis.lens import spans
from llama2np.cli.flags import Parser, guarded, joined, number, path_value
from llama2np.cli.model import add_model, drawing, load_model, read_tokens
from llama2np.cli.screen import Screen
from llama2np.model.hooks import Trace

_MAX_MAPS = 64  # in one picture


def main(argv: Sequence[str], prog: str) -> int:
    """Draw attention maps of a prompt; return the exit status."""
    return guarded(prog, lambda: _attend(_parse(argv, prog)))


def _attend(options: argparse.Namespace) -> None:
    screen, output = Screen(), options.output
    plot = drawing(output)
    model = load_model(options)
    layers = _chosen("--layer", options.layer, model.config.n_layers)
    heads = _chosen("--head", options.head, model.config.n_heads)
    if plot is not None and len(layers) * len(heads) > _MAX_MAPS:
        raise ValueError(
            f"{len(layers) * len(heads)} maps are too many, a picture has at most {_MAX_MAPS}: "
            f"choose with --layer (0 to {layers[-1]}) or --head (0 to {heads[-1]}), or write a "
            "file.html"
        )
    tokens = read_tokens(model, options)
    pairs = [(layer, head) for layer in layers for head in heads]
    columns = len(heads) if len(heads) > 1 else 4
    if plot is None:
        interactive.save_attention(output, model, tokens, pairs, columns)
    else:
        trace = Trace("attention", layers=layers)
        model.with_hooks(trace).forward(tokens, model.new_state())
        maps = [trace["attention", layer][head] for layer, head in pairs]
        titles = [f"layer {layer}, head {head}" for layer, head in pairs]
        read = spans(model.tokenizer, tokens)
        plot.save(plot.attention_maps(maps, read, titles, columns=columns), output)
    screen.write(f"wrote {output}\n")


def _chosen(flag: str, value: int | None, count: int) -> list[int]:
    if value is not None and value >= count:
        raise ValueError(f"argument {flag}: expected 0 to {count - 1}, found {value}")
    return list(range(count)) if value is None else [value]


def _parse(argv: Sequence[str], prog: str) -> argparse.Namespace:
    parser = Parser(
        prog=prog,
        description="Draw the attention weight of each token to each token before it. A .png, "
        ".svg or .pdf needs the extra `plot`; an .html is one file to point at, and needs nothing.",
        allow_abbrev=False,
    )
    add_model(parser, prompt=True)
    for flag in ("--layer", "--head"):
        parser.add_argument(
            flag, type=number(int, 0, None), metavar="N", help="counted from 0 (default: all)"
        )
    parser.add_argument(
        *("-o", "--output"),
        type=path_value,
        default=Path("attention.png"),
        metavar="FILE",
        help="the .html, .png, .svg or .pdf file to write (default attention.png)",
    )
    return parser.parse_args(list(joined(argv, parser)))
