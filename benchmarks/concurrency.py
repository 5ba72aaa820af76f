"""Several threads generate from one model: tokens per second for each number of threads.

    python -m benchmarks.concurrency                          15M and 110M-q8, 1, 2 and 4 threads
    python -m benchmarks.concurrency 15M --threads 1 2 --kernel-threads 1

Each thread has its own State. "all" is the sum over threads, between the start of the first and the
end of the last. It is the median of some rounds, which measure all numbers of threads alternately.
With `--kernel-threads 1` a kernel uses only the thread that calls it.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

from llama2np.kernels.threads import layer

from benchmarks.random_models import SHAPES, write_model
from llama2np import kernels
from llama2np.formats import checkpoint
from llama2np.model.transformer import State, Transformer


def tokens(model: Transformer, first: int, steps: int) -> list[int]:
    """Generate greedily."""
    state, found = State(model.config), [first]
    while len(found) <= steps:
        found.append(int(model.forward(found[-1:], state).argmax()))
    return found[1:]


def together(
    model: Transformer, count: int, steps: int, kernel_threads: int | None
) -> tuple[float, list[list[int]]]:
    """Run `count` threads; return tokens per second of all, and what each generated."""
    found: list[list[int]] = [[] for _ in range(count)]
    ready = threading.Barrier(count + 1)

    def work(i: int) -> None:
        if kernel_threads:
            kernels.set_threads(kernel_threads)  # numba keeps this number for each thread
        ready.wait()
        found[i] = tokens(model, 5 + i, steps)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    ready.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return count * steps / (time.perf_counter() - start), found


def measure(shape: str, folder: Path, options: argparse.Namespace) -> str:
    """Return a line of the table."""
    model = Transformer(*checkpoint.load(write_model(shape, folder)))
    most = max(options.threads)
    alone = [tokens(model, 5 + i, options.steps) for i in range(most)]
    rates: dict[int, list[float]] = {count: [] for count in options.threads}
    for _ in range(options.rounds):
        for count in options.threads:
            rate, found = together(model, count, options.steps, options.kernel_threads)
            if found != alone[:count]:
                raise SystemExit(f"{shape}: {count} threads generate other tokens than alone")
            rates[count].append(rate)
    cells = (f"{median(rate):.1f} ({median(rate) / n:.1f})" for n, rate in rates.items())
    return f"| {shape} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="*", default=["15M", "110M-q8"], metavar="SHAPE")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4], metavar="N")
    parser.add_argument("--kernel-threads", type=int, metavar="N", help="default: the processors")
    parser.add_argument("--steps", type=int, default=64, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    options = parser.parse_args()
    if unknown := set(options.shapes) - SHAPES.keys():
        raise SystemExit(f"no shape {', '.join(sorted(unknown))}: expected {', '.join(SHAPES)}")
    with tempfile.TemporaryDirectory() as folder:
        print(f"| tok/s of all (of each) | {' | '.join(map(str, options.threads))} |")
        print("|---" * (1 + len(options.threads)) + "|")
        for shape in options.shapes:
            print(measure(shape, Path(folder), options), flush=True)
    print(f"\nnumba's threading layer: {layer()}; the same tokens as alone in every round")


if __name__ == "__main__":
    main()
