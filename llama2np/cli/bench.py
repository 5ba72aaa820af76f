"""The command `bench`: how fast a model is on this machine, and the limit of the machine."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from llama2np import kernels
from llama2np.bench import form
from llama2np.bench.measure import measure, plan
from llama2np.bench.peer import LLAMA2C, Peer
from llama2np.cli import engine
from llama2np.cli.flags import Parser, flag_value, guarded, joined, number, path_value
from llama2np.cli.model import MODEL_HELP, plotting_to
from llama2np.formats import loading
from llama2np.store.names import located


def main(argv: Sequence[str], prog: str) -> int:
    """Measure a model and print the results; return the exit status."""
    return guarded(prog, lambda: _bench(_parse(argv, prog)))


def _bench(options: argparse.Namespace) -> None:
    plot = plotting_to(options.plot) if options.plot else None
    pattern = options.peer_pattern or LLAMA2C
    model = os.fspath(located(options.model))
    peers = [Peer(peer, model, pattern) for peer in options.peer]
    transformer = loading.transformer(options.model, activations=options.activations)
    tasks = plan(transformer.config.seq_len, options.prompt, options.generate, options.depth)
    threads = options.threads or [kernels.threads()]
    progress = _say if sys.stderr.isatty() else lambda _: None
    report = measure(transformer, tasks, threads, peers, options.repeats, progress)
    about = form.about(options.model, transformer)
    if options.json:
        print(form.as_json(report, about))
    elif options.csv:
        print(form.as_csv(report), end="")
    else:
        print(form.as_table(report, about))
    if plot:
        plot.save(plot.speeds(report.results), options.plot)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _list_of(parse: Callable[[str], float]) -> Callable[[str], list[float]]:
    """A parser of numbers separated by commas. `parse` parses each of them."""
    return lambda value: [parse(f".{part}") for part in flag_value(value).split(",")]


def _parse(argv: Sequence[str], prog: str) -> argparse.Namespace:
    parser = Parser(
        prog=prog,
        description="Measure how fast a model reads prompts and generates, and compare it with "
        "the speed of the machine.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", help=MODEL_HELP)
    add(
        "--prompt",
        type=number(int, 0, None),
        metavar="N",
        help="tokens of the prompt; 0 skips this measurement (default 512, or the context)",
    )
    add(
        "--generate",
        type=number(int, 0, None),
        metavar="N",
        help="tokens to generate; 0 skips this measurement (default 128, or the context)",
    )
    add(
        "--depth",
        type=_list_of(number(int, 0, None)),
        metavar="N,...",
        help="tokens in the context before them (default those of 0, 512 and 2048 that fit)",
    )
    add(
        "--threads",
        type=_list_of(number(int, 1, None)),
        metavar="N,...",
        help="measure with each of these numbers of threads (default: the number of processors)",
    )
    add(
        "--repeats",
        type=number(int, 1, None),
        default=5,
        metavar="N",
        help="how often everything is measured (default 5)",
    )
    add(
        "--peer",
        type=flag_value,
        action="append",
        default=[],
        metavar="COMMAND",
        help="a program to compare with, run alternately; may be repeated; {model} and {threads} "
        "are replaced",
    )
    add(
        "--peer-pattern",
        type=flag_value,
        metavar="REGEX",
        help="how to read a peer's output: group 1 is the tokens per second (default llama2.c's)",
    )
    engine.add_activations(add)
    add("--plot", type=path_value, metavar="FILE", help="draw the results: .png, .svg or .pdf")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print all measurements as JSON")
    output.add_argument("--csv", action="store_true", help="print one line for each measurement")
    return parser.parse_args(list(joined(argv, parser)))
