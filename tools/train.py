"""Train a storyteller from scratch: corpus, tokenizer, training, export, figures.

python -m tools.train                   into build/box
python -m tools.train --steps 50        a quick try
After an interruption, run it again: it continues from the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from llama2np.atomic import write_file
from llama2np.formats import llama2c, tokenizer_bin, write
from llama2np.learning.trainer import Trainer, score
from llama2np.learning.writing import new_source
from llama2np.model.config import Config
from llama2np.text.training import train_sentencepiece
from tools.stories.words import names, words
from tools.training.corpus import HELD_OUT, Corpus, encode, stories
from tools.training.settings import Settings, new_trainer

NAME = "stories-box"
CONFIG = Config(
    dim=128, hidden_dim=320, n_layers=5, n_heads=4, n_kv_heads=2, vocab_size=1008, seq_len=256
)
HELD_OUT_STORIES = 2000
TOKENIZER_STORIES = 20_000


def prepare(folder: Path, count: int) -> tuple[Corpus, Corpus]:
    """The training corpus and the held-out one; they are made once, and then read from disk."""
    model = folder / "tokenizer.model"
    if not model.exists():
        texts = [story.text for story in stories(0, min(count, TOKENIZER_STORIES))]
        train_sentencepiece(texts, model, CONFIG.vocab_size)
        tokenizer_bin.write_bin(model, folder / "tokenizer.bin")
    found = []
    for name, first, number in (("train", 0, count), ("held-out", HELD_OUT, HELD_OUT_STORIES)):
        path = folder / f"{name}.npz"
        if not path.exists():
            encode(stories(first, number), model, CONFIG.seq_len).save(path)
        found.append(Corpus.load(path))
    return found[0], found[1]


def export(folder: Path, parameters: Mapping[str, np.ndarray]) -> None:
    """The .bin files that llama2.c's run and runq read."""
    write.write_bin(new_source(CONFIG, parameters), folder / f"{NAME}.bin", version=0)
    write.write_bin(llama2c.read_bin(folder / f"{NAME}.bin"), folder / f"{NAME}-q8.bin", version=2)


def distinct_words(count: int) -> int:
    """The number of distinct words in `count` stories, without names of heroes and friends."""
    found: set[str] = set()
    for story in stories(0, count):
        found |= set(map(str.lower, set(words(story.text)) - set(names(story.text))))
    return len(found)


def train(trainer: Trainer, every: int = 100) -> None:
    """Train to the end; tell the mean loss after each checkpoint."""
    last = trainer.schedule.steps
    while trainer.step < last:
        trainer.run(min(trainer.step + every - trainer.step % every, last), every)
        mean = np.mean(trainer.losses[-every:])
        print(f"step {trainer.step:,} of {last:,}: loss {mean:.4f}", flush=True)


def figures(trainer: Trainer, corpus: Corpus, held_out: Corpus, log: Path) -> dict[str, object]:
    """What the README of the bundled model tells about it."""
    lines = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    return {
        "parameters": sum(array.size for array in trainer.parameters.values()),
        "stories": len(corpus),
        "tokens": int(corpus.lengths.sum()),
        "tokens of a story": [int(f(corpus.lengths)) for f in (min, max)],
        "distinct words": distinct_words(len(corpus)),
        "steps": trainer.step,
        "minutes": round(sum(line["seconds"] for line in lines) / 60, 1),
        "entropy of the choices, nats per token": round(held_out.entropy, 4),
        "loss, last 100 steps": round(float(np.mean(trainer.losses[-100:])), 4),
        "loss, held out": round(score(trainer.program, trainer.parameters, held_out.all()).loss, 4),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/box"), metavar="FOLDER")
    parser.add_argument("--steps", type=int, default=Settings.steps, help="on stories")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    settings = Settings(steps=options.steps, warmup=min(Settings.warmup, options.steps // 4))
    corpus, held_out = prepare(options.out, settings.steps * settings.batch)
    print(f"{len(corpus):,} stories, {corpus.tokens.size:,} tokens", flush=True)
    trainer = new_trainer(CONFIG, settings, corpus, options.out)
    train(trainer)
    export(options.out, trainer.parameters)
    text = json.dumps(figures(trainer, corpus, held_out, options.out / "losses.jsonl"), indent=2)
    write_file(options.out / "figures.json", f"{text}\n".encode())
    print(text)


if __name__ == "__main__":
    main()
