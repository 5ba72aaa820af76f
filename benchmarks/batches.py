"""Total tokens per second of many texts at once, against one after the other.

python -m benchmarks.batches MODEL [MODEL ...]: rounds of one text alone and of batches, by turns;
the median over the rounds of each, and of the ratio in the same round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from llama2np import Llama

PROMPT = "Once upon a time, there was a little girl named Lily. She loved to"


def rate(model: Llama, count: int, tokens: int, seed: int) -> float:
    """Tokens per second of `count` texts of `tokens` tokens each, prompts included in the time."""
    random = [{"prompt": PROMPT, "seed": seed + i} for i in range(count)]
    bias = {token: float("-inf") for token in model.tokenizer.ends}  # all have the same length
    start = time.perf_counter()
    if count == 1:
        story = model.generate(PROMPT, seed=seed, max_new_tokens=tokens, logit_bias=bias)
        story.read()
        made = len(story.tokens)
    else:
        done = model.generate_batch(random, max_new_tokens=tokens, logit_bias=bias)
        made = sum(len(each.tokens) for each in done)
    return made / (time.perf_counter() - start)


def main() -> None:
    """Measure, and print a line for each model and size of a batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    for path in options.models:
        beside = Path(path).with_suffix(".tokenizer")
        model = Llama.load(path, beside if beside.exists() else None)
        sizes = [1, *options.sizes]
        for size in sizes:
            rate(model, size, 4, 1)  # loads the file and the kernels
        found = [
            [rate(model, size, options.tokens, 100 * i + 1) for size in sizes]
            for i in range(options.rounds)
        ]
        alone = statistics.median(row[0] for row in found)
        print(f"{path}: one after the other {alone:.1f} tokens/s", flush=True)
        for i, size in enumerate(sizes[1:], 1):
            total = statistics.median(row[i] for row in found)
            ratio = statistics.median(row[i] / row[0] for row in found)
            print(f"  {size} at once: {total:.1f} tokens/s, {ratio:.2f} x", flush=True)


if __name__ == "__main__":
    main()
