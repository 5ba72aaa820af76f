"""Redo the tables of benchmarks/README.md: generation, prompts, threads, context and start.

    python -m benchmarks.report --llama2c FOLDER --llamacpp PYTHON --ct2 PYTHON --folder DIR

FOLDER holds llama2.c's programs: run_o3 (`gcc -O3`), run_fast and runq_fast (`gcc -Ofast -fopenmp
-march=native`, of run.c and runq.c); the first PYTHON has llama-cpp-python and gguf, the second one
ctranslate2, transformers and torch. What is not given is left out. In each round every program runs
once, whole, one after the other.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks import programs
from benchmarks.programs import Task
from benchmarks.random_models import SHAPES, write_model
from llama2np import kernels
from llama2np.atomic import write_file
from llama2np.bench import arithmetic
from llama2np.bench.form import aligned
from llama2np.bench.machine import description
from llama2np.formats.checkpoint import load

README = Path(__file__).with_name("README.md")
MARK = "<!-- What follows is written by python -m benchmarks.report. -->\n"
TASKS = [Task("260K"), Task("15M"), Task("42M"), Task("110M"), Task("110M-q8")]
TASKS += [Task("1.1B-q8", 64, 128)]
_PEERS = {"llama.cpp": programs.llamacpp, "CTranslate2": programs.ctranslate2}
_C = {"run_o3": "llama2.c -O3", "run_fast": "llama2.c fast", "runq_fast": "llama2.c fast"}


def rounds(measures: dict[str, Callable[[], float]], count: int) -> dict[str, list[float]]:
    """Call each in turn, `count` times: its numbers by name."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for i in range(count):
        for name, measure in measures.items():
            found[name].append(measure())
        print(f"  round {i + 1}: " + ", ".join(f"{n} {v[-1]:.4g}" for n, v in found.items()))
    return found


def measure(task: Task, options: argparse.Namespace) -> dict[str, list[float]]:
    """All programs on one shape, tokens per second; and the machine, per second."""
    folder, threads, machine = options.folder, options.threads, {}

    def prompt() -> float:
        flags = {"prompt": task.prompt, "generate": 0, "depth": 0, "repeats": 1}
        found = programs.bench(task.shape, folder, threads=threads, **flags)
        machine.update(found["machine_speed"][0])
        machine["share"] = found["results"][0]["share"]
        return found["results"][0]["tokens_per_second"]

    ours = programs.llama2np(task, folder)
    measures = {
        "llama2np": partial(ours.rate, threads),
        "prompt": prompt,
        "read": lambda: machine["bytes_read_per_second"],  # measured with the prompt
        "sgemm": lambda: machine["sgemm_flops"],
        "prompt share": lambda: machine["share"],
        "one thread": partial(ours.rate, 1),
    }
    for name, column in _C.items():
        program = options.llama2c and options.llama2c / name
        if program and program.exists() and name.startswith("runq") == task.q8:
            peer = programs.llama2c(program, task, folder)
            measures[column] = partial(peer.rate, threads)
    for name, start in _PEERS.items():
        if python := getattr(options, start.__name__):
            generate, read = start(python, task, folder)
            measures[name] = partial(generate.rate, threads)
            measures[f"{name} prompt"] = partial(read.rate, threads)
    return rounds(measures, options.rounds)


def ratio(found: dict[str, list[float]], ours: str, theirs: str) -> str:
    """The median of the rounds' ratios."""
    if theirs not in found:
        return "–"
    return f"{median(a / b for a, b in zip(found[ours], found[theirs], strict=True)):.2f}"


def rate(found: dict[str, list[float]], name: str) -> str:
    return tokens(median(found[name])) if name in found else "–"


def tokens(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def generation_row(task: Task, found: dict[str, list[float]], folder: Path) -> list[str]:
    """A line of the first table. The share is of bytes at the mean position of the run."""
    needed = arithmetic.bytes_to_generate(*load(write_model(task.shape, folder)), 0, task.steps)
    shares = [n * needed / r for n, r in zip(found["llama2np"], found["read"], strict=True)]
    others = "llama2.c -O3", "llama2.c fast", *_PEERS
    return [
        task.shape,
        rate(found, "llama2np"),
        f"{tokens(min(found['llama2np']))}–{tokens(max(found['llama2np']))}",
        *(rate(found, name) for name in others),
        *(ratio(found, "llama2np", name) for name in others[1:]),
        f"{median(found['read']) / 1e9:.1f}",
        f"{median(shares):.0%}",
    ]


def prompt_row(task: Task, found: dict[str, list[float]]) -> list[str]:
    return [
        f"{task.shape}, {task.prompt}",
        rate(found, "prompt"),
        *(rate(found, f"{name} prompt") for name in _PEERS),
        *(ratio(found, "prompt", f"{name} prompt") for name in _PEERS),
        f"{median(found['sgemm']) / 1e9:.0f}",
        f"{median(found['prompt share']):.0%}",
    ]


def thread_row(task: Task, found: dict[str, list[float]]) -> list[str]:
    names = "one thread", "llama2np"
    return [task.shape, *(rate(found, n) for n in names), ratio(found, *names[::-1])]


def context_rows(options: argparse.Namespace) -> list[list[str]]:
    """Rates by depth, and that of depth 0 less what the bytes and operations there allow."""
    shape, folder = options.context_shape, options.folder
    config, weights = load(write_model(shape, folder))
    depths = [d for d in (0, 512, 1024, 2048, 4096) if d + 128 <= config.seq_len]
    depths = sorted({*depths, config.seq_len - 128})
    found = programs.bench(
        shape,
        folder,
        **{"depth": ",".join(map(str, depths)), "prompt": 128, "generate": 128},
        **{"repeats": options.rounds, "threads": options.threads},
    )
    rates = {(r["kind"], r["depth"]): r["tokens_per_second"] for r in found["results"]}
    rows = []
    for depth in depths:
        more = [
            arithmetic.operations_to_read(config, depth, 128)
            / arithmetic.operations_to_read(config, 0, 128),
            arithmetic.bytes_to_generate(config, weights, depth, 128)
            / arithmetic.bytes_to_generate(config, weights, 0, 128),
        ]
        row = [f"{depth:,}"]
        for kind, factor in zip(("prompt", "generate"), more, strict=True):
            allowed = rates[kind, 0] / factor
            row += [tokens(rates[kind, depth]), tokens(allowed)]
            row += [f"{rates[kind, depth] / allowed:.0%}"]
        rows.append(row)
    return rows


def start_rows(options: argparse.Namespace) -> list[list[str]]:
    """Seconds of a whole run of two tokens, on a shape that costs little itself."""
    task, rows = TASKS[0], []
    with tempfile.TemporaryDirectory() as cache:
        first = programs.seconds_to_first_token(task, options.folder, Path(cache))
        rows.append(["first ever, which compiles", f"{first:.1f}"])
        again = [
            programs.seconds_to_first_token(task, options.folder, Path(cache))
            for _ in range(options.rounds)
        ]
        rows.append(["later", f"{median(again):.2f}"])
    return rows


def tables(tasks: list[Task], options: argparse.Namespace) -> list[str]:
    """The text of the report."""
    found = {}
    for task in tasks:
        print(task.shape, flush=True)
        found[task] = measure(task, options)
    generation = [generation_row(task, found[task], options.folder) for task in tasks]
    ratios = [f"/ {name}" for name in _PEERS]
    head = ["shape", "llama2np", "range", "llama2.c -O3", "fast", *_PEERS]
    head += ["/ fast", *ratios, "GB/s read", "share of it"]
    lines = ["## Generation, tokens per second", "", *aligned(head, generation)]
    head = ["shape, tokens", "llama2np", *_PEERS, *ratios, "GFLOP/s, sgemm", "share of it"]
    lines += ["", "## Prompts, tokens per second", ""]
    lines += aligned(head, [prompt_row(task, found[task]) for task in tasks])
    lines += ["", "## Threads, generation, tokens per second", ""]
    head = ["shape", "1 thread", f"{options.threads} threads", "ratio"]
    lines += aligned(head, [thread_row(task, found[task]) for task in tasks])
    lines += ["", f"## Context, {options.context_shape}, tokens per second", ""]
    head = ["after", "128 read", "arithmetic allows", "share"]
    head += ["128 generated", "bytes allow", "share"]
    lines += aligned(head, context_rows(options))
    lines += ["", f"## Start, {TASKS[0].shape}, whole runs of two tokens, seconds", ""]
    return lines + aligned(["run", "seconds"], start_rows(options))


def preface(options: argparse.Namespace) -> list[str]:
    """When, where and with what."""
    machine = description()
    versions = [f"{name} {machine[name]}" for name in ("llama2np", "numpy", "numba", "llvmlite")]
    for python, module in ((options.llamacpp, "llama_cpp"), (options.ctranslate2, "ctranslate2")):
        if python:
            code = f"import {module}; print({module}.__version__)"
            done = subprocess.run([python, "-c", code], capture_output=True, text=True)
            versions.append(f"{module} {done.stdout.strip()}")
    if options.llama2c:
        git = ["git", "-C", str(options.llama2c), "rev-parse", "--short", "HEAD"]
        done = subprocess.run(git, capture_output=True, text=True)
        versions.append(f"llama2.c {done.stdout.strip() or 'of an unknown commit'}")
    return [
        f"{date.today()}, {machine['processor']}, {machine['processors']} processors, "
        f"{machine['system']}, Python {machine['python']}, {', '.join(versions)}; medians of "
        f"{options.rounds} rounds, {options.threads} threads. Written by",
        "",
        f"    {_command(options)}",
        "",
    ]


def _command(options: argparse.Namespace) -> str:
    """What was run, without the names of this machine's folders."""
    words = ["python -m benchmarks.report", *options.shapes]
    words += ["--llama2c FOLDER"] if options.llama2c else []
    words += ["--llamacpp PYTHON"] if options.llamacpp else []
    words += ["--ct2 PYTHON"] if options.ctranslate2 else []
    return " ".join([*words, f"--rounds {options.rounds} --threads {options.threads}"])


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("shapes", nargs="*", metavar="SHAPE", help=f"of {', '.join(SHAPES)}")
    add("--llama2c", type=Path, metavar="FOLDER", help="of run_o3, run_fast and runq_fast")
    add("--llamacpp", metavar="PYTHON", help="one that has llama-cpp-python and gguf")
    words = "one that has ctranslate2, transformers and torch"
    add("--ct2", dest="ctranslate2", metavar="PYTHON", help=words)
    add("--rounds", type=int, default=5, metavar="N")
    add("--threads", type=int, default=kernels.threads(), metavar="N")
    add("--context-shape", default="110M-4096", choices=SHAPES, metavar="SHAPE")
    add("--folder", type=Path, metavar="DIR", help="keep the checkpoints there")
    add("--output", type=Path, default=README, metavar="FILE", help="with another text: keep this")
    options = parser.parse_args(argv)
    if unknown := set(options.shapes) - SHAPES.keys():
        sys.exit(f"no shape {', '.join(sorted(unknown))}: expected some of {', '.join(SHAPES)}")
    tasks = [task for task in TASKS if not options.shapes or task.shape in options.shapes]
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = options.folder or Path(temporary)
        options.folder.mkdir(parents=True, exist_ok=True)
        lines = [*preface(options), *tables(tasks, options)]
    kept = README.read_text().partition(MARK)[0]
    write_file(options.output, "\n".join([kept + MARK, *lines, ""]).encode())
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main(sys.argv[1:])
