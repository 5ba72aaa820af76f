"""Generate stories with the bundled model, or another, and count those without faults.

python -m tools.samples                        200 stories at -t 0.8, and the corpus beside them
python -m tools.samples --show 30              and print the first 30
python -m tools.samples --model build/box/stories-box.bin --tokenizer build/box/tokenizer.bin
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable

from llama2np import Llama, box
from tools.stories.teller import tell
from tools.stories.words import names, vocabulary, words
from tools.training.corpus import HELD_OUT


def faults(text: str, ended: bool = True) -> list[str]:
    """What is wrong with a story, of what a program can see.

    It ends within the context, at the end of a sentence. Somebody is named, at most two are, and
    the second does not take the place of the first. All words are the corpus's.
    """
    found = []
    if not ended or text.rstrip()[-1:] not in tuple('.!?"'):
        found.append("does not end")
    named = Counter(names(text))
    first, *others = named.values() or [0]
    if not first or len(others) > 1 or first == 1 < max(others, default=0):
        found.append("loses its hero")
    strange = {w for w in words(text) if w.lower() not in vocabulary() and w not in named}
    if strange:
        found.append("has new words: " + ", ".join(sorted(strange)))
    return found


def sampled(model: Llama, seeds: Iterable[int], temperature: float, prompt: str = ""):
    """Yield a text for each seed, and whether it ended before the context did."""
    room = model.config.seq_len - len(model.tokenizer.encode(prompt)) + 1
    for seed in seeds:
        pieces = list(model.generate(prompt, temperature=temperature, seed=seed))
        yield prompt + "".join(pieces), len(pieces) < room


def counts(stories: Iterable[tuple[str, bool]]) -> dict[str, int]:
    """How many stories have no fault, and how many each kind of fault."""
    found: Counter[str] = Counter()
    for text, ended in stories:
        wrong = faults(text, ended)
        found.update([fault.partition(":")[0] for fault in wrong] or ["without fault"])
    return dict(sorted(found.items()))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=box.STORIES)
    parser.add_argument("--tokenizer")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--prompt", default="")
    parser.add_argument("--show", type=int, default=0)
    options = parser.parse_args()
    model = Llama.load(options.model, options.tokenizer)
    seeds = range(1, options.count + 1)
    stories = list(sampled(model, seeds, options.temperature, options.prompt))
    for seed, (text, ended) in zip(seeds, stories[: options.show], strict=False):
        print(f"[seed {seed}] {'; '.join(faults(text, ended))}\n{text}\n")
    print(f"{options.model}: {counts(stories)} of {options.count}")
    corpus = ((tell(n).text, True) for n in range(HELD_OUT, HELD_OUT + options.count))
    print(f"the corpus: {counts(corpus)} of {options.count}")


if __name__ == "__main__":
    main()
