"""Total tokens per second of many texts at once, against one after the other.

python -m benchmarks.batches MODEL [MODEL ...]: rounds of one text alone and of batches, by turns;
the median over the rounds of each, and of the ratio in the same round. With --cpu, one thread
computes, and its processor time counts: that is what a busy machine can measure.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from llama2np import Llama, kernels

# They differ in their first token, so that none of them reuses another one's KV cache.
PROMPTS = [f"{i} years" for i in range(10, 50)]


def rate(model: Llama, count: int, tokens: int, seed: int, clock: Callable[[], float]) -> float:
    """Tokens per second of `count` texts of `tokens` tokens each, prompts included in the time."""
    start = clock()
    if count == 1:
        story = model.generate(PROMPTS[seed % 40], max_new_tokens=tokens, temperature=0)
        story.read()
        made = len(story.tokens)
    else:
        prompts = [PROMPTS[(seed + i) % 40] for i in range(count)]
        done = model.generate_batch(prompts, max_new_tokens=tokens, temperature=0)
        made = sum(len(each.tokens) for each in done)
    return made / (clock() - start)


def main() -> None:
    """Measure, and print a line for each model and size of a batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    clock = time.perf_counter
    if options.cpu:
        kernels.set_threads(1)
        clock = time.process_time
    for path in options.models:
        beside = Path(path).with_suffix(".tokenizer")
        model = Llama.load(path, beside if beside.exists() else None)
        sizes = [1, *options.sizes]
        for size in sizes:
            rate(model, size, 4, 1, clock)  # loads the file and the kernels
        found = [
            [rate(model, size, options.tokens, i, clock) for size in sizes]
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
