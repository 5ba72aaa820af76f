"""The cost of hooks: tokens per second of a plain model, and of one with hooks.

    python -m benchmarks.capture                   260K and 15M
    python -m benchmarks.capture 110M --rounds 9

Each round measures the variants one after the other. A ratio is the median of the rounds' ratios to
`plain`:

    plain       the model as loaded
    off         a model without hooks, of which there are copies with hooks
    no hooks    a hooked copy with an empty list of hooks: the steps are called from Python
    resid_post  a Trace of the residual stream
    all         a Trace of every array, attention weights among them
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.random_models import SHAPES, tokenizer_of, write_model
from llama2np import Llama, Trace


def rate(model: Llama, tokens: np.ndarray) -> float:
    """Tokens per second, read one by one as in generation."""
    state, start = model.new_state(), time.perf_counter()
    for token in tokens:
        model.forward([token], state)
    return len(tokens) / (time.perf_counter() - start)


def variants(path: Path) -> dict[str, Callable[[], Llama]]:
    """The variants: functions that make a new model for each round."""
    plain, other = (Llama.load(path, tokenizer_of(path)) for _ in range(2))
    watchers = [other.with_hooks(Trace())]
    watchers[0].forward([1, 2], watchers[0].new_state())
    return {
        "plain": lambda: plain,
        "off": lambda: other,
        "no hooks": lambda: other.with_hooks(),
        "resid_post": lambda: other.with_hooks(Trace("resid_post")),
        "all": lambda: other.with_hooks(Trace()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="*", default=["260K", "15M"], metavar="SHAPE")
    parser.add_argument("--steps", type=int, default=200, metavar="N")
    parser.add_argument("--rounds", type=int, default=9, metavar="N")
    options = parser.parse_args()
    for shape in options.shapes:
        if shape not in SHAPES:
            parser.error(f"shapes are {', '.join(SHAPES)}; found {shape!r}")
    with tempfile.TemporaryDirectory() as folder:
        for shape in options.shapes:
            chosen = variants(write_model(shape, Path(folder)))
            tokens = np.random.default_rng(0).integers(3, 500, options.steps)
            rates: dict[str, list[float]] = {name: [] for name in chosen}
            for turn in range(-1, options.rounds):  # the first one is a warm-up
                for name, make in chosen.items():
                    found = rate(make(), tokens)
                    if turn >= 0:
                        rates[name].append(found)
            for name, found in rates.items():
                ratio = median(a / b for a, b in zip(found, rates["plain"], strict=True))
                print(f"| {shape} | {name:<10} | {median(found):8.1f} tok/s | {ratio:.3f} |")


if __name__ == "__main__":
    main()
