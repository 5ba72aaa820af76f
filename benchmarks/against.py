"""Compare this checkout with another one: the same models, alternately, in one run.

    git worktree add /tmp/before COMMIT
    python -m benchmarks.against /tmp/before                      all shapes and tasks
    python -m benchmarks.against /tmp/before box 15M --rounds 40
    python -m benchmarks.against /tmp/before 110M --threads 1 --cpu

Each checkout has a separate process, with the same Python and a separate kernel cache. The two run
alternately in short bursts, each after a pause, so that other work on the machine affects both
alike. The ratio is this checkout's speed divided by the other's: for the fastest tenth of the
bursts, and the median. `--cpu` measures processor time instead, on which other programs have less
influence; use it with one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median, quantiles

from benchmarks.random_models import SHAPES, write_model

BOX = {"box": "stories-box", "box-q8": "stories-box-q8"}
# {task: (tokens of context before it, tokens read in one pass, tokens generated)}
TASKS = {
    "generate": (0, 1, 24),
    "prompt 16": (0, 16, 0),
    "prompt 64": (0, 64, 0),
    "prompt 256": (0, 256, 0),
    "generate after 2000": (2000, 1, 24),
    "generate after 4000": (4000, 1, 24),
}

_WORKER = r"""
import json, sys, time
root, path, threads, cpu = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "1"
sys.path.insert(0, root)
import numpy as np
from llama2np import State, Transformer, kernels
from llama2np import checkpoint  # its name in every version
kernels.set_threads(threads)
clock = time.process_time if cpu else time.perf_counter
model = Transformer(*checkpoint.load(path))
state = State(model.config)
tokens = np.random.default_rng(0).integers(3, model.config.vocab_size, model.config.seq_len)
filled = 0
print("ready", flush=True)
for line in sys.stdin:
    depth, count, generated, least = json.loads(line)
    if filled < depth:
        state.pos = filled
        model.forward(tokens[filled:depth], state)
        filled = depth
    time.sleep(0.03)  # the threads of the other process may spin for some milliseconds
    bursts, start = 0, clock()
    while not bursts or clock() - start < least:
        state.pos = depth
        logits = model.forward(tokens[depth : depth + count], state)
        for _ in range(generated):
            logits = model.forward([int(logits.argmax())], state)
        bursts += 1
    print((clock() - start) / bursts, flush=True)
"""


class _Checkout:
    """A process that measures with the package of one checkout."""

    def __init__(self, root: Path, path: str, threads: int, cpu: bool, cache: str):
        command = [sys.executable, "-c", _WORKER, str(root), path, str(threads), str(int(cpu))]
        env = {**os.environ, "NUMBA_CACHE_DIR": cache}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=env, cwd="/"
        )
        if self._answer() != "ready":
            raise SystemExit(f"{root} does not start")

    def _answer(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def seconds(self, task: tuple[int, int, int], least: float) -> float:
        """The mean time of a burst, in seconds, over at least `least` seconds."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps([*task, least]) + "\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def compare(ours: _Checkout, theirs: _Checkout, task: tuple[int, int, int], rounds: int) -> str:
    """The cells of a row: our speed, and the ratios."""
    found: list[list[float]] = [[], []]
    turns = [*zip((ours, theirs), found, strict=True)]
    for _ in range(rounds + 1):
        for checkout, seconds in turns:
            seconds.append(checkout.seconds(task, 0.02))
        turns.reverse()
    mine, other = (seconds[1:] for seconds in found)  # the first one is a warm-up
    fast = [quantiles(seconds, n=10)[0] for seconds in (mine, other)]
    tokens = task[1] + task[2]
    ratio = median(b / a for a, b in zip(mine, other, strict=True))
    return f"{tokens / fast[0]:,.0f} | {fast[1] / fast[0]:.3f} | {ratio:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkout", type=Path, help="the other checkout's folder")
    parser.add_argument("shapes", nargs="*", help=f"of {', '.join([*BOX, *SHAPES])}")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cpu", action="store_true", help="processor time instead of time")
    parser.add_argument("--models", type=Path, help="a folder to keep the models in")
    options = parser.parse_args()
    here = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as scratch:
        models = options.models or Path(scratch)
        print("| shape | task | tok/s | ratio, fast tenth | ratio, median |")
        print("|---|---|---|---|---|", flush=True)
        for shape in options.shapes or [*BOX, *SHAPES]:
            path = BOX.get(shape) or str(write_model(shape, models))
            length = 256 if shape in BOX else SHAPES[shape][0][6]
            rest = path, options.threads, options.cpu
            ours = _Checkout(here, *rest, f"{scratch}/ours")
            theirs = _Checkout(options.checkout.resolve(), *rest, f"{scratch}/theirs")
            for name in options.tasks:
                if sum(TASKS[name]) <= length:
                    cells = compare(ours, theirs, TASKS[name], options.rounds)
                    print(f"| {shape} | {name} | {cells} |", flush=True)
            ours.close()
            theirs.close()


if __name__ == "__main__":
    main()
