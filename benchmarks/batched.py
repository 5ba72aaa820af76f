"""The shape of llama-batched-bench: many sequences in one process, nothing sampled, no HTTP.

serving.py calls this. Each of `count` sequences reads a prompt, and then they continue together,
one token each in a pass. Both programs take turns, each in a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from llama2np import Llama, State, kernels

PROMPT, STEPS = 128, 64


def ours(path: Path, prompt: int, steps: int, count: int, threads: int, cpu: int) -> None:
    """Print our rates, as llamacpp.py's `batched` does. cpu: 1 for processor time."""
    clock = time.process_time if cpu else time.perf_counter
    kernels.set_threads(threads)
    beside = path.with_suffix(".tokenizer")
    network = Llama.load(path, beside if beside.exists() else None).transformer

    def run(prompt: int, steps: int) -> tuple[float, float]:
        states = [State(network.config) for _ in range(count)]
        start = clock()
        together = max(2048 // prompt, 1)  # sequences, of llama.cpp's n_batch
        for first in range(0, count, together):
            some = states[first : first + together]
            network.forward_rows([[7 + i for i in range(prompt)]] * len(some), some)
        read = clock()
        for i in range(steps):
            network.forward_rows([[300 + i + s] for s in range(count)], states)
        return read - start, clock() - read

    run(min(prompt, 16), 2)
    reading, generating = run(prompt, steps)
    print(f"prompt tok/s: {count * prompt / reading:f}")
    print(f"generation tok/s: {count * steps / generating:f}")


def _rates(command: list[str], words: list[str]) -> tuple[float, float]:
    done = subprocess.run([*command, *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join([*command, *words])}: {done.stderr}")
    first, second = (float(line.rpartition(" ")[2]) for line in done.stdout.splitlines()[:2])
    return first, second


def tables(models: list[tuple[str, Path, Path]], options: argparse.Namespace) -> None:
    """Print a line for each model and number of sequences."""
    print(f"Without HTTP: prompts of {PROMPT} tokens, {STEPS} tokens each; tokens per second\n")
    columns = ["model", "sequences", "prompts", "llama.cpp", "ratio"]
    columns += ["generation", "llama.cpp", "ratio"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    here = [sys.executable, "-m", "benchmarks.batched"]
    there = [options.llamacpp, str(Path(__file__).with_name("llamacpp.py")), "batched"]
    for name, own, their in models:
        for count in options.clients:
            words = [*map(str, (PROMPT, STEPS, count, options.threads, int(options.cpu)))]
            rows = []
            for _ in range(options.rounds):
                rows.append(
                    (
                        *_rates(here, [str(own), *words]),
                        *(_rates(there, [str(their), *words]) if options.llamacpp else (0, 0)),
                    )
                )
            cells = [name, str(count)]
            for i in (0, 1):
                cells.append(f"{median(row[i] for row in rows):,.0f}")
                if options.llamacpp:
                    cells.append(f"{median(row[i + 2] for row in rows):,.0f}")
                    cells.append(f"{median(row[i] / row[i + 2] for row in rows):.2f}")
                else:
                    cells += ["–", "–"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    ours(Path(sys.argv[1]), *map(int, sys.argv[2:]))
