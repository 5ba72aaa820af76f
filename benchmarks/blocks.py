"""GGUF's number formats: beside the speed of memory, beside llama.cpp, and in memory.

    python -m benchmarks.blocks --models DIR --llamacpp PYTHON       all of it
    python -m benchmarks.blocks --models DIR --only kernels          the products alone, one thread

DIR keeps the models of 1.1B parameters with random weights (3.4 GB, written when they are needed).
PYTHON has llama-cpp-python; --llama-bench PROGRAM is the program of that name of llama.cpp or of a
fork. What is not given is left out. --file adds a model of your own, such as SmolLM2's.

- kernels: one thread, processor time. The product of one row with matrices of 500 MB together and a
  plain sum over the same bytes take turns; the share is the median of the rounds' ratios. The last
  column is the product with a matrix that stays in the cache: what the arithmetic alone allows.
- models: in each round the mapped file is read, and each program generates and reads a prompt once.
  The share compares generation, which reads all weights once for each token, with the plain sum
  over the same mapped file. Generation fetches weights ahead of their use, so it may be faster than
  the plain sum. llama.cpp evaluates tokens and samples none.
- memory: the most that a process has besides the mapped file, while it reads and generates.

Before `models`, each file is dropped from the page cache, so that it is read from the disk again,
as after a start of the computer, and not as it was written: see mapped_file.py. All programs map
the same pages. The last column says how much of the file is in pages of 2 MiB, for us and for
llama-cpp-python.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.mapped_file import drop_from_cache, file_speed, share_in_huge_pages
from benchmarks.random_gguf import RECIPES, write_gguf
from llama2np import kernels
from llama2np.bench.arithmetic import bytes_to_generate
from llama2np.formats import loading
from llama2np.formats.gguf.quantize import quantize
from llama2np.kernels.matmul import block_rows
from llama2np.kernels.matmul.block_kinds import KINDS
from llama2np.kernels.runtime.jit import exact
from llama2np.model.transformer import State, Transformer

_LLAMACPP = Path(__file__).with_name("llamacpp.py")
_SHAPES = ((5632, 2048), (2048, 5632))
_BYTES = 5 * 10**8  # larger than the caches
_WRITTEN = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K")

Rounds = dict[str, list[float]]
_CHILDREN: list[subprocess.Popen[str]] = []  # the processes of llama.cpp that are running


def in_turns(tasks: dict[str, Callable[[], float]], count: int) -> Rounds:
    """What each task returns, `count` times, after a first round that does not count."""
    found: Rounds = {name: [] for name in tasks}
    for i in range(count + 1):
        for name, task in tasks.items():
            value = task()
            if i:
                found[name].append(value)
    return found


def ratio(rounds: Rounds, a: str, b: str) -> float:
    """The median of the rounds' ratios a / b."""
    return median(x / y for x, y in zip(rounds[a], rounds[b], strict=True))


# --- products -------------------------------------------------------------------------------------


@exact
def _quantize(x, rest, group, q, scales, sums, offsets):
    block_rows.quantize(x, rest, group, q, scales, sums, offsets)


def _product(kind: str, matrices: list[np.ndarray]) -> Callable[[], float]:
    """A function that multiplies all matrices with a row, and returns the processor time."""
    multiply, form, inputs = _chunks(block_rows.few(kind)), KINDS[kind], {}
    for _, n in _SHAPES:
        x = np.random.default_rng(1).standard_normal(n).astype(np.float32)
        width = block_rows.padded_width(n)
        groups = width // form.group
        q, scales = np.zeros(width, np.int8), np.zeros(groups, np.float32)
        sums, offsets = np.zeros(groups, np.int32), np.zeros(groups, np.float32)
        _quantize(x, x.copy(), form.group, q, scales, sums, offsets)
        inputs[n // form.values * form.nbytes] = n, q, scales, sums, offsets
    out = np.zeros(max(d for d, _ in _SHAPES), np.float32)
    spare = np.zeros(2 * block_rows.ROWS, np.float32)

    def run() -> float:
        start = time.process_time()
        for w in matrices:
            n, *x = inputs[w.shape[1]]
            multiply(w.reshape(-1), n, len(w), *x, out, spare)
        return time.process_time() - start

    return run


def _chunks(product: Callable) -> Callable:
    """A kernel that computes all rows, in such chunks as the threads of the engine share."""

    @exact
    def multiply(w, n, d, q, scales, sums, offsets, out, spare):
        for first in range(0, d, 64):
            last = min(first + 64, d)
            product(w, n, d, q, scales, sums, offsets, 1, 1, out, first, last, spare)

    return multiply


def products(kinds: list[str], rounds: int) -> None:
    """Print the share of the read speed that the products of one row reach."""
    print("| format | GB/s read | share | GB/s in the cache |\n|---|---|---|---|")
    kernels.set_threads(1)
    for kind in kinds:
        random, matrices, size = np.random.default_rng(0), [], 0
        while size < _BYTES:
            for d, n in _SHAPES:
                some = quantize(random.standard_normal((64, n), np.float32), kind)
                matrices.append(np.resize(some, (d, some.shape[1])))
                size += matrices[-1].nbytes
        sums = np.zeros(max(map(len, matrices)), np.float32)
        views = [w.reshape(-1)[: w.size // 4 * 4].view(np.float32).reshape(1, -1) for w in matrices]

        def read(views: list[np.ndarray] = views, sums: np.ndarray = sums) -> float:
            start = time.process_time()
            for view in views:
                kernels.row_sums(view, sums)
            return time.process_time() - start

        small = [matrices[0][:128]] * 100
        tasks = {"read": read, "product": _product(kind, matrices), "small": _product(kind, small)}
        found = in_turns(tasks, rounds)
        speed = size / median(found["read"]) / 1e9
        cached = sum(each.nbytes for each in small) / median(found["small"]) / 1e9
        share = ratio(found, "read", "product")
        print(f"| {kind} | {speed:.1f} | {share:.0%} | {cached:.1f} |", flush=True)


# --- models ---------------------------------------------------------------------------------------


def generation(model: Transformer, count: int) -> Callable[[], float]:
    """A function that returns the tokens per second of generating `count` tokens."""

    def rate() -> float:
        state, token = State(model.config), 5
        model.forward([token], state)
        start = time.perf_counter()
        for _ in range(count):
            token = int(model.forward([token], state).argmax())
        return count / (time.perf_counter() - start)

    return rate


def prompt(model: Transformer, count: int) -> Callable[[], float]:
    """A function that returns the tokens per second of reading a prompt of `count` tokens."""

    def rate() -> float:
        state = State(model.config)
        start = time.perf_counter()
        model.forward(range(7, 7 + count), state)
        return count / (time.perf_counter() - start)

    return rate


def llamacpp(python: str, path: Path, options: argparse.Namespace) -> dict[str, Callable]:
    """The same two functions for llama.cpp, which stays loaded in a process of its own."""
    words = [python, str(_LLAMACPP), "answer", str(path), str(options.threads)]
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    _CHILDREN.append(child)

    def ask(task: str, count: int) -> float:
        assert child.stdin and child.stdout
        print(task, count, file=child.stdin, flush=True)
        if not (answer := child.stdout.readline()):
            sys.exit(f"{python}: llama.cpp ended")
        return float(answer)

    return {
        "llama.cpp generate": lambda: ask("generate", options.generate),
        "llama.cpp prompt": lambda: ask("prompt", options.prompt),
    }


def llama_bench(program: str, path: Path, options: argparse.Namespace) -> dict[str, Callable]:
    """The same for a program llama-bench, which loads the model each time."""

    def ask(flag: str, count: int) -> float:
        words = [program, "-m", path, "-t", options.threads, "-r", 2, "-o", "json"]
        words += ["-p", 0, "-n", 0, flag, count]
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True)
        return float(json.loads(done.stdout)[-1]["avg_ts"])

    return {
        "llama-bench generate": lambda: ask("-n", options.generate),
        "llama-bench prompt": lambda: ask("-p", options.prompt),
    }


def models(paths: dict[str, Path], options: argparse.Namespace) -> None:
    """Print the rates of the models, the shares of the read speed, and the ratios to llama.cpp."""
    kernels.set_threads(options.threads)
    peers = [name for name in ("llamacpp", "llama_bench") if getattr(options, name)]
    heads = {"llamacpp": "llama.cpp", "llama_bench": "llama-bench"}
    print(
        "| model | task | tok/s | GB/s read | share |"
        + "".join(f" {heads[p]} | ratio |" for p in peers)
        + " huge pages |"
    )
    print("|---|---|---|---|---|" + "---|---|" * len(peers) + "---|")
    for name, path in paths.items():
        drop_from_cache(path)
        tasks: dict[str, Callable[[], float]] = {"file": file_speed(path)}
        tasks["file"]()  # reads it from the disk
        model = loading.transformer(path, activations=options.activations)
        tasks["generate"] = generation(model, options.generate)
        tasks["prompt"] = prompt(model, options.prompt)
        for peer in peers:
            tasks |= globals()[peer](getattr(options, peer), path, options)
        found = in_turns(tasks, options.rounds)
        processes = "self", *(str(child.pid) for child in _CHILDREN)
        huge = " and ".join(share_in_huge_pages(path, process) for process in processes)
        read = bytes_to_generate(model.program, 0, options.generate)
        for task in ("generate", "prompt"):
            cells = [name, task, f"{median(found[task]):.1f}", "", ""]
            if task == "generate":
                cells[3] = f"{median(found['file']) / 1e9:.1f}"
                cells[4] = f"{ratio(found, task, 'file') * read:.0%}"
            for peer in peers:
                other = f"{heads[peer]} {task}"
                cells += [f"{median(found[other]):.1f}", f"{ratio(found, task, other):.2f}"]
            print("| " + " | ".join([*cells, huge]) + " |", flush=True)
        while _CHILDREN:
            child = _CHILDREN.pop()
            child.kill()
            child.wait()


# --- memory ---------------------------------------------------------------------------------------


def _anonymous() -> int:
    """The bytes of this process that are not pages of a file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def memory_of(path: Path, options: argparse.Namespace) -> None:
    """Print the most memory besides the mapped file, in this process."""
    most, done = [_anonymous()], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            most.append(_anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = loading.transformer(path, activations=options.activations)
    state = State(model.config)
    model.forward(range(7, 7 + options.prompt), state)
    for token in range(options.generate):
        model.forward([token], state)
    done.set()
    watcher.join()
    print(f"| {path.name} | {path.stat().st_size / 1e6:,.0f} MB | {max(most) / 1e6:.0f} MB |")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    add, count = parser.add_argument, os.cpu_count()
    add("--models", type=Path, required=True, metavar="DIR", help="keeps the models")
    add("--llamacpp", metavar="PYTHON", help="a Python that has llama-cpp-python")
    add("--llama-bench", metavar="PROGRAM", help="llama.cpp's program, or that of a fork")
    add("--file", type=Path, action="append", default=[], help="another GGUF file")
    add("--only", choices=("kernels", "models", "memory"), action="append", help="default: all")
    add("--kinds", nargs="+", choices=_WRITTEN, default=["Q4_0", "Q4_1", "Q4_K", "Q6_K", "Q8_0"])
    add("--recipes", nargs="*", choices=RECIPES, default=list(RECIPES))
    add("--rounds", type=int, default=5)
    add("--threads", type=int, default=count)
    add("--generate", type=int, default=64, metavar="TOKENS")
    add("--prompt", type=int, default=256, metavar="TOKENS")
    add("--activations", choices=("int8", "int8x2"), default="int8")
    add("--memory-of", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = _parse()
    if options.memory_of:
        memory_of(options.memory_of, options)
        return
    parts = options.only or ["kernels", "models", "memory"]
    if "kernels" in parts:
        products(options.kinds, options.rounds)
    paths = {f"1.1B {name}": write_gguf(name, options.models) for name in options.recipes}
    paths |= {path.name: path for path in options.file}
    if "models" in parts:
        print()
        models(paths, options)
    if "memory" in parts:
        print("\n| model | file | memory besides |\n|---|---|---|", flush=True)
        for path in paths.values():
            words = [sys.executable, "-m", "benchmarks.blocks", *sys.argv[1:]]
            subprocess.run([*words, "--memory-of", str(path)], check=True)


if __name__ == "__main__":
    main()
