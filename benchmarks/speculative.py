"""What a draft saves: tokens per second with and without, of the same text, in turns.

    python -m benchmarks.speculative large.bin --draft small.bin
    python -m benchmarks.speculative large.bin --prompt "The cat sat. The cat sat. The" --tokens 200

Each round generates the text greedily without a draft, with prompt look-up, and with the small
model if there is one; the first round compiles and is not counted. A ratio is the median of those
of the rounds. Guessing pays where a pass over several tokens costs hardly more than over one (large
models, whose weights come from memory) and the text is easy to guess.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from statistics import median

from llama2np import DraftModel, Generation, Llama, PromptLookup
from llama2np.decoding.generation import Draft

_PROMPT = "Once upon a time, there was a little girl named Lily. She loved to play outside."


class Counted:
    """A draft function that counts its calls and its draft tokens."""

    def __init__(self, draft: Draft):
        self._draft, self.calls, self.tokens = draft, 0, 0

    def __call__(self, tokens):
        guess = self._draft(tokens)
        self.calls, self.tokens = self.calls + 1, self.tokens + len(guess)
        return guess


def run(model: Llama, options: argparse.Namespace, draft: Draft | None) -> Generation:
    """Generate the text once."""
    story = model.generate(
        options.prompt, temperature=0, max_new_tokens=options.tokens, draft=draft
    )
    story.read()
    return story


def measure(model: Llama, options: argparse.Namespace, drafts: dict[str, Callable]) -> None:
    """Print a line for each way to generate."""
    rates: dict[str, list[float]] = {name: [] for name in drafts}
    seen: dict[str, tuple[Generation, Counted | None]] = {}
    for _ in range(options.rounds + 1):
        for name, make in drafts.items():
            counted = Counted(make()) if name != "none" else None
            story = run(model, options, counted)
            rates[name].append(story.tokens_per_second)
            seen[name] = story, counted
    print("| draft | tok/s | ratio (range) | tokens a pass | guesses kept | same text |")
    print("|---|---|---|---|---|---|")
    plain = seen["none"][0].tokens
    for name, (story, counted) in seen.items():
        ratios = [a / b for a, b in zip(rates[name][1:], rates["none"][1:], strict=True)]
        count = len(story.tokens)
        passes = counted.calls + 1 if counted else count  # the first one has no guess
        kept = f"{(count - passes) / counted.tokens:.0%}" if counted and counted.tokens else "–"
        print(
            f"| {name} | {median(rates[name][1:]):.1f} | {median(ratios):.2f} "
            f"({min(ratios):.2f}–{max(ratios):.2f}) | {count / passes:.2f} | {kept} | "
            f"{'yes' if story.tokens == plain else 'no'} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--draft", metavar="MODEL", help="a small model with the same tokenizer")
    parser.add_argument("--tokenizer", metavar="FILE")
    parser.add_argument("--ahead", type=int, default=4, metavar="N", help="tokens of a guess")
    parser.add_argument("--prompt", default=_PROMPT, metavar="TEXT")
    parser.add_argument("--tokens", type=int, default=150, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    options = parser.parse_args()
    if options.rounds < 1 or options.tokens < 2:
        sys.exit("--rounds must be 1 or more, --tokens 2 or more")
    model = Llama.load(options.model, options.tokenizer)
    drafts = {"none": lambda: None, "look-up": lambda: PromptLookup(ahead=2 * options.ahead)}
    if options.draft:
        small = Llama.load(options.draft, options.tokenizer)
        drafts["small model"] = lambda: DraftModel(small, options.ahead)
    measure(model, options, drafts)


if __name__ == "__main__":
    main()
