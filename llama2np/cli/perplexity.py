"""The command `perplexity`: how well a model predicts a text."""

from __future__ import annotations

import argparse
import codecs
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llama2np.analysis.evaluation import Evaluation, compare, evaluate
from llama2np.cli import bulk
from llama2np.cli.flags import Parser, flag_value, guarded, joined, number, path_value
from llama2np.cli.model import add_model, load_model
from llama2np.cli.screen import Screen
from llama2np.cli.text import plain
from llama2np.files import open_regular
from llama2np.formats import kinds, loading
from llama2np.llama import Llama

_BYTES = 1 << 16  # of one read


def main(argv: Sequence[str], prog: str) -> int:
    """Print perplexity and bits per byte; return the exit status."""
    return guarded(prog, lambda: _perplexity(_parse(argv, prog), prog))


def _perplexity(options: argparse.Namespace, prog: str) -> None:
    if bulk.asked(options, options.file, "--file", "--against" if options.against else ""):
        of_task = {"context": options.context, "stride": options.stride}
        bulk.run(options, prog, "perplexity", of_task)
        return
    screen = Screen()
    with open_regular(options.file):
        pass  # so that a wrong name is an error before anything is loaded
    model, names, against = load_model(options), _short([options.model]), None
    if options.against is not None:
        network = loading.transformer(options.against, activations=options.activations)
        against = Llama(network, model.tokenizer)
        names = _short([options.model, options.against])
    with _progress(os.path.getsize(options.file)) as progress:
        text = plain(_text(options.file))
        how = dict(context=options.context, stride=options.stride, progress=progress)
        if against is None:
            found, results = None, [evaluate(model, text, **how)]
        else:
            found = compare(model, against, text, **how)
            results = [found.model, found.against]
    first = results[0]
    windows = f"windows of {first.context}, {first.stride} apart"
    screen.write(f"{options.file}: {first.bytes:,} bytes, {first.tokens:,} tokens, {windows}\n\n")
    for line in _table(names, results):
        screen.write(line + "\n")
    if found is not None:
        screen.write(
            f"\nKL divergence of {names[0]} from {names[1]}: {found.divergence:.3g} nats per token"
            f"\nthe same most probable token: {found.agreement:.2%}\n"
        )


def _short(paths: list[str]) -> list[str]:
    """The names of files without their folders if they differ, else the paths."""
    names = [Path(path).name for path in paths]
    return names if len({*names}) == len(names) else paths


def _table(names: list[str], results: list[Evaluation]) -> Iterator[str]:
    widths = [max(len(name), 10) for name in names]
    rows = {
        "": names,
        "nats per token": [f"{result.nats_per_token:.4f}" for result in results],
        "perplexity": [f"{result.perplexity:.4f}" for result in results],
        "bits per byte": [f"{result.bits_per_byte:.4f}" for result in results],
    }
    for name, cells in rows.items():
        columns = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        yield "  ".join([f"{name:<14}", *columns])


def _text(path: Path) -> Iterator[str]:
    """The text of a file, in pieces. Raises ValueError if it is not UTF-8."""
    decoder, at = codecs.getincrementaldecoder("utf-8")(), 0
    with open_regular(path) as file:
        while True:
            data = file.read(_BYTES)
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                at += len(data) - len(error.object) + error.start
                byte = error.object[error.start]
                raise ValueError(
                    kinds.explained(path, "text")
                    or f"{path}: expected UTF-8, found byte 0x{byte:02x} at byte {at}"
                ) from None
            yield text
            if not data:
                return
            at += len(data)


@contextmanager
def _progress(size: int) -> Iterator[Callable[[int], object]]:
    """Show a progress bar on a terminal; yield a function of the number of bytes evaluated."""
    if not sys.stderr.isatty():
        yield int
        return
    from tqdm import tqdm

    with tqdm(total=size, unit="B", unit_scale=True, leave=False) as bar:
        yield bar.update


def _parse(argv: Sequence[str], prog: str) -> argparse.Namespace:
    parser = Parser(
        prog=prog,
        description="Measure how well a model predicts a text: perplexity and bits per byte; or, "
        "with --prompts and --output, each of many texts.",
        allow_abbrev=False,
    )
    add_model(parser)
    add = parser.add_argument
    add("--file", type=path_value, metavar="TEXT", help="the text, in UTF-8")
    bulk.add_prompts(parser)
    add(
        "--against",
        type=flag_value,
        metavar="MODEL",
        help="another model with the same tokenizer: also print how much the two differ",
    )
    add(
        "--context",
        type=number(int, 1, None),
        metavar="N",
        help="tokens in a window (default: the model's context)",
    )
    add(
        "--stride",
        type=number(int, 1, None),
        metavar="N",
        help="tokens from one window to the next (default: half of the context)",
    )
    return parser.parse_args(list(joined(argv, parser)))
