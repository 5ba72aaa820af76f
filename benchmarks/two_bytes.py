"""Generation with bfloat16 and float16 weights, beside float32 and the speed of memory.

    python -m benchmarks.two_bytes                             110M, all threads
    python -m benchmarks.two_bytes 15M --threads 1 --cpu       processor time: less noise

The networks and a plain sum over an array take turns in short bursts; all numbers are of the
fastest tenth of the bursts. "share of memory" is the bytes of the weights that are read in a
second, divided by those of the sum.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import quantiles

import ml_dtypes
import numpy as np

from benchmarks.random_models import SHAPES, write_model
from llama2np import kernels
from llama2np.formats import checkpoint
from llama2np.model.transformer import State, Transformer
from llama2np.model.weights import Dense, Weights

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
_TOKENS = 6  # in a burst


def network(path: str, dtype: type) -> Transformer:
    """The network of a checkpoint with its matrices converted to a dtype."""
    config, weights = checkpoint.load(path)
    dense = {id(each.w): each.w for each in weights.values() if isinstance(each, Dense)}
    # One array has large pages, as a mapped file, which many small ones would not have.
    memory, start = np.empty(sum(w.size for w in dense.values()), dtype), 0
    converted: dict[int, Dense] = {}  # tied matrices stay one
    for key, w in dense.items():
        converted[key] = Dense(memory[start : start + w.size].reshape(w.shape))
        converted[key].w[:] = w
        start += w.size
    tensors = {n: converted[id(t.w)] if isinstance(t, Dense) else t for n, t in weights.items()}
    return Transformer(config, Weights(tensors))


def generation(model: Transformer) -> Callable[[], None]:
    """A function that generates the tokens of a burst."""
    state = State(model.config)

    def burst() -> None:
        state.pos, token = 0, 1
        for _ in range(_TOKENS):
            token = int(model.forward([token], state).argmax())

    return burst


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("shape", nargs="?", default="110M", choices=SHAPES)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--cpu", action="store_true", help="processor time instead of time")
    parser.add_argument("--models", type=Path, help="a folder to keep the model in")
    options = parser.parse_args()
    kernels.set_threads(options.threads)
    clock = time.process_time if options.cpu else time.perf_counter
    with tempfile.TemporaryDirectory() as scratch:
        path = str(write_model(options.shape, options.models or Path(scratch)))
        models = {name: network(path, dtype) for name, dtype in DTYPES.items()}
    # larger than the caches
    rows, sums = np.ones((64, 2**20), np.float32), np.zeros(64, np.float32)
    bursts = {name: generation(model) for name, model in models.items()}
    bursts["memory"] = lambda: kernels.row_sums(rows, sums)
    seconds: dict[str, list[float]] = {name: [] for name in bursts}
    for _ in range(options.rounds + 1):
        for name, burst in bursts.items():
            start = clock()
            burst()
            seconds[name].append(clock() - start)
    print("| weights | tok/s | / float32 | GB/s | share of memory |\n|---|---|---|---|---|")
    fast = {name: quantiles(times[1:], n=10)[0] for name, times in seconds.items()}
    speed = rows.nbytes / fast.pop("memory")
    for name, each in fast.items():
        read = _TOKENS * models[name].weights.nbytes / each
        cells = f"{_TOKENS / each:.1f} | {fast['float32'] / each:.2f} | {read / 1e9:.1f}"
        print(f"| {name} | {cells} | {read / speed:.0%} |")


if __name__ == "__main__":
    main()
