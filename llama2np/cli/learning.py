"""What the commands that train share: their flags, and how progress is shown."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llama2np.cli.flags import choice, number, path_value
from llama2np.cli.model import plotting, plotting_to
from llama2np.freed_memory import keep_freed_memory
from llama2np.learning.schedule import DECAYS
from llama2np.learning.trainer import Settings, Trainer

_FLAGS: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "steps": (number(int, 1, None), "N", "updates of the weights"),
    "batch": (number(int, 1, None), "N", "sequences of a batch"),
    "accumulate": (number(int, 1, None), "N", "batches whose gradients are added for an update"),
    "rate": (number(float, 0, None), "X", "the highest learning rate"),
    "warmup": (number(int, 0, None), "N", "steps until the rate is reached"),
    "decay": (choice(*DECAYS), "NAME", f"how it falls then: {', '.join(DECAYS)}"),
    "weight-decay": (number(float, 0, None), "X", "AdamW's, of matrices"),
    "clip": (number(float, 0, None), "X", "the largest norm of the gradients; 0: no limit"),
    "dropout": (number(float, 0, 0.99), "P", "the share of values of a branch that become 0"),
    "seed": (number(int, 0, 2**32 - 1), "N", "of the weights, the batches and dropout"),
    "every": (number(int, 1, None), "N", "steps between two checkpoints"),
}


def add_training(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Add the flags of a training, with the defaults of the command."""
    chosen: dict[str, Any] = {
        "accumulate": 1,
        "decay": "cosine",
        "weight_decay": 0.1,
        "clip": 1.0,
        "dropout": 0.0,
        "seed": 0,
        "every": 100,
    } | defaults
    for flag, (kind, value, text) in _FLAGS.items():
        default = chosen.get(flag.replace("-", "_"))
        told = "" if default is None else f" (default {default})"
        if isinstance(default, str):
            default = f".{default}"  # argparse parses it, as a value that `joined` has rewritten
        parser.add_argument(
            f"--{flag}", type=kind, default=default, metavar=value, help=f"{text}{told}"
        )
    parser.add_argument(
        "--threads",
        type=number(int, 1, None),
        metavar="N",
        help="number of threads (default: the number of processors); the result is the same",
    )
    parser.add_argument(
        "--plot", type=path_value, metavar="FILE", help="draw the losses: .png, .svg or .pdf"
    )
    parser.add_argument(
        "--allow-change",
        action="store_true",
        help="go on from a checkpoint that was made with other flags, such as fewer --steps",
    )
    parser.add_argument(
        "--recompute", action="store_true", help="keep less in memory, and compute it again"
    )


def settings_of(options: argparse.Namespace, steps: int) -> Settings:
    """The settings that the flags give."""
    return Settings(
        steps,
        rate=options.rate,
        warmup=min(options.warmup, steps),
        decay=options.decay,
        accumulate=options.accumulate,
        weight_decay=options.weight_decay,
        clip=options.clip,
        dropout=options.dropout,
        seed=options.seed,
        recompute=options.recompute,
    )


def check_plot(options: argparse.Namespace) -> None:
    """Raise ValueError or FileNotFoundError if the losses cannot be drawn to --plot's file."""
    if options.plot is None:
        return
    if options.plot.absolute().parent == options.out.absolute():  # it will be made
        plotting().checked(options.plot)
    else:
        plotting_to(options.plot)


def draw(options: argparse.Namespace, trainer: Trainer) -> None:
    """Draw the losses to --plot's file, if there is one."""
    if options.plot is not None:
        plot = plotting()
        plot.save(plot.losses(trainer.losses), options.plot)
        print(f"wrote {options.plot}")


def tell_start(trainer: Trainer) -> None:
    """Say that training goes on from a checkpoint, if it does."""
    if trainer.step:
        print(f"going on after step {trainer.step:,}", file=sys.stderr)


def run(trainer: Trainer, every: int, until: int | None = None) -> None:
    """Train up to a step, by default the last, with a progress bar on a terminal."""
    keep_freed_memory()
    with progress(trainer.settings.steps, " steps", trainer.step) as told:
        trainer.run(until, every, lambda _, loss: told(1, f"loss {loss:.3f}"), _tell_unsaved)


def _tell_unsaved(error: OSError) -> None:
    what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    print(f"not saved: {what}; training goes on and tries again", file=sys.stderr, flush=True)


@contextmanager
def progress(total: int, unit: str, first: int = 0) -> Iterator[Callable[..., object]]:
    """Show a progress bar on a terminal; yield told(n, text) for what has been done."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from tqdm import tqdm

    with tqdm(total=total, initial=first, unit=unit, unit_scale=True, leave=False) as bar:

        def told(count: int, text: str = "") -> None:
            if text:
                bar.set_postfix_str(text, refresh=False)
            bar.update(count)

        yield told
