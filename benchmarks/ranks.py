"""One model in several processes over MPI, beside one process: tokens, memory of each rank, speed.

    python -m benchmarks.ranks --models FOLDER --rounds 20           (--shapes 110M 1.1B-q8 ...)

N ranks of one thread against one process of N threads. Both are there all the time, and generate by
turns, in bursts of half a second: what a machine does changes from second to second. A ratio is the
median of those of neighbouring bursts, with the tenth below and above. The models are random, and
written to FOLDER when they are missing.

Memory is the most that a rank has had, less what it had before it loaded the model, with the
kernels and MPI in memory already; pages that several ranks map are divided among them (Pss). The
share is the bytes of its part of the weights, and of its KV cache of 512 positions, which are read.
It has no embedding, of which only the rows of the tokens are read. Rank 0 has the tokenizer, which
is in its memory, but in no share. The first number is that of all ranks together, the second of
the rank with most, the third of the one with most besides rank 0.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.random_mixtral import mixtral
from benchmarks.random_models import SHAPES, write_model

_DEFAULT = ("110M", "1.1B-q8", "42M-gqa", "mixtral")
_BURST = 0.5  # seconds


class Child:
    """One process, or several ranks, that generate when they are asked."""

    def __init__(self, path: Path, size: int, launcher: list[str], threads: int):
        words = [sys.executable, "-m", "benchmarks.ranks_child", str(path), str(threads)]
        self.command = [*launcher, "-n", str(size), *words] if launcher else words
        self.size = size
        self._process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        while "ready" not in self.heard():
            pass

    def heard(self) -> dict:
        """The next result."""
        for line in self._process.stdout:
            if line.startswith("RESULT "):
                return json.loads(line[7:])
        raise SystemExit(f"{' '.join(self.command)}: ended with {self._process.wait()}")

    def burst(self, count: int) -> dict:
        """The results of a burst of `count` tokens."""
        self._say(str(count))
        return self.heard()

    def end(self) -> list[int]:
        """The memory of each rank."""
        self._say("end")
        found = [self.heard() for _ in range(self.size)]
        self._process.wait()
        return [each["memory"] for each in sorted(found, key=lambda each: each["rank"])]

    def _say(self, line: str) -> None:
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


def shares_of(path: Path, size: int) -> list[int]:
    """The bytes of the weights and of the KV cache of each rank."""
    from llama2np.formats import loading
    from llama2np.formats.sharing import share_of
    from llama2np.model.shares import shares

    loaded, found = loading.load(path), []
    for share in shares(loaded.config, size):
        own = share_of(loaded.weights, share)
        arrays = [
            t.arrays if hasattr(t, "arrays") else (t,) for n, t in own.items() if n != "embedding"
        ]
        weights = sum(array.nbytes for some in arrays for array in some)
        c = share.config
        found.append(weights + 8 * c.n_layers * c.kv_dim * min(512, c.seq_len))
    return found


def rates(found: dict) -> tuple[float, float, float]:
    """Of a burst: tokens per second, those of its fastest token, and of the prompt."""
    prompt, *tokens = found["seconds"]
    return len(tokens) / sum(tokens), 1 / min(tokens), 1 / prompt


def compare(path: Path, size: int, launcher: list[str], rounds: int) -> list[str]:
    """The cells of a row of the table, without its first one."""
    pair = Child(path, 1, [], size), Child(path, size, launcher, 1)
    count = max(int(_BURST * rates(pair[0].burst(8))[0]), 8)
    bursts = []
    for i in range(rounds):
        each = {one: one.burst(count) for one in (pair if i % 2 else pair[::-1])}
        bursts.append([each[one] for one in pair])
    pair[0].end()  # first: it maps the same pages of the file
    memory = pair[1].end()
    same = all(alone["tokens"] == ranks["tokens"] for alone, ranks in bursts)
    error = np.abs(np.subtract(*(one["logits"] for one in bursts[0]))).max()
    alone, ranks = (np.array([rates(burst[i]) for burst in bursts]) for i in range(2))
    low, middle, high = np.quantile(ranks / alone, (0.1, 0.5, 0.9), axis=0)
    parts = shares_of(path, size)
    each = [some / part for some, part in zip(memory, parts, strict=True)]
    return [
        *(str(size), "yes" if same else "NO", f"{error:.0e}", f"{max(parts) / 1e6:,.0f} MB"),
        f"{sum(memory) / sum(parts):.2f} ({max(each):.2f}, {max(each[1:]):.2f})",
        *(f"{np.median(one[:, 0]):,.1f}" for one in (alone, ranks)),
        *(f"{middle[i]:.2f} ({low[i]:.2f}-{high[i]:.2f})" for i in range(3)),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--models", type=Path, metavar="FOLDER", required=True, help="2.7 GB in all"
    )
    parser.add_argument("--shapes", nargs="+", default=_DEFAULT, choices=[*SHAPES, "mixtral"])
    parser.add_argument("--ranks", nargs="+", type=int, default=(2, 4))
    parser.add_argument("--rounds", type=int, default=10, help="bursts of each (default 10)")
    beside = Path(sys.executable).with_name("mpirun")
    root = "--allow-run-as-root " if hasattr(os, "getuid") and not os.getuid() else ""
    parser.add_argument("--mpirun", default=f"{beside} {root}--oversubscribe")
    options = parser.parse_args()
    options.models.mkdir(exist_ok=True)
    heads = "model", "ranks", "same tokens", "logits differ", "largest share"
    heads += "memory / share (most, others)", "1 process, tokens/s", "ranks", "ratio"
    heads += "fastest token", "prompt"
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for shape in options.shapes:
        path = mixtral(options.models) if shape == "mixtral" else write_model(shape, options.models)
        for size in options.ranks:
            cells = compare(path, size, options.mpirun.split(), options.rounds)
            print("| " + " | ".join([shape, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
