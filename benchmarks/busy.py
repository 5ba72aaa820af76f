"""A busy machine: tokens per second with the default number of threads, with one and with two.

    python -m benchmarks.busy                                  all shapes, quiet, busy, half a CPU
    python -m benchmarks.busy box --only busy --rounds 3
    python -m benchmarks.busy --llama2c FOLDER                 and llama2.c's OpenMP build
    python -m benchmarks.busy --beside CHECKOUT                and the default of another version

"busy": other processes compute all the time, one for each processor. "quota": a control group
(Linux, as root) limits us to half of a processor. Each program is a process that keeps running, and
they are measured alternately, so that other work on the machine affects all of them alike. A number
is the median of the rounds; a ratio is the median of the rounds' ratios. FOLDER has `run` and
`runq`, built by `gcc -O3 -fopenmp -march=native run.c -lm -o run`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.random_models import header_of, tokenizer_of, write_model
from llama2np import box
from llama2np.bench.form import aligned
from llama2np.bench.peer import Peer

SHAPES = ("box", "15M", "110M-q8")
SITUATIONS = ("quiet", "busy", "quota")
_ROOT = Path(__file__).parents[1]
_TOKENS = 200  # to generate before a text ends and another begins
# The program of such a process: each line of its input is a number of seconds to measure.
_WORKER = """\
import sys, time
from llama2np import checkpoint, kernels
from llama2np import State, Transformer
threads, prompt, tokens = map(int, sys.argv[2:])
model = Transformer(*checkpoint.load(sys.argv[1]))
if threads:
    kernels.set_threads(threads)

state, token = State(model.config), 1

def some():
    global state, token
    if prompt:
        model.forward([1] * prompt, State(model.config))
        return prompt
    if state.pos == tokens:
        state = State(model.config)
    token = int(model.forward([token], state).argmax())
    return 1

some()
print(flush=True)
for line in sys.stdin:
    start, count = time.perf_counter(), 0
    while time.perf_counter() < start + float(line):
        count += some()
    print(count / (time.perf_counter() - start), flush=True)
"""


class Program:
    """A process of ours that keeps running. prefix: a command line that starts another command."""

    def __init__(self, checkout: Path, prefix: list[str], *numbers: object):
        command = [*prefix, sys.executable, "-c", _WORKER, *map(str, numbers)]
        self._process = subprocess.Popen(
            command, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def rate(self, seconds: float) -> float:
        """Tokens per second, measured for `seconds`."""
        assert self._process.stdin
        print(seconds, file=self._process.stdin, flush=True)
        return float(self._answer())

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("a process of ours has ended: its message is above")
        return answer


@contextmanager
def busy() -> Iterator[list[str]]:
    """Run one process for each processor that computes all the time. Yields the prefix for ours."""
    code = "while True: pass"
    count = os.cpu_count() or 1
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        time.sleep(1)
        yield []
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def quota() -> Iterator[list[str]]:
    """A control group with half of a processor. The prefix puts a process into it."""
    root, first = Path("/sys/fs/cgroup"), {"cpu.max": "50000 100000"}
    if not (root / "cgroup.controllers").exists():  # version 1
        root, first = root / "cpu", {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}
    group = root / f"busy-{os.getpid()}"
    try:
        group.mkdir()
        for name, value in first.items():
            (group / name).write_text(value)
    except OSError as error:
        raise SystemExit(f"quota: no control group can be made here: {error}") from None
    try:
        enter = f"echo $$ > {shlex.quote(str(group / 'cgroup.procs'))}"
        yield ["sh", "-c", f'{enter} && exec "$@"', "sh"]
    finally:
        time.sleep(0.1)  # a process that has ended stays for a moment
        group.rmdir()


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Run no other processes."""
    yield []


def model_of(shape: str, folder: Path) -> tuple[Path, Path]:
    """A checkpoint, and its tokenizer."""
    if shape == "box":
        return Path(box.located(box.STORIES)), box.TOKENIZER
    path = write_model(shape, folder)
    return path, tokenizer_of(path)


def llama2c(shape: str, prefix: list[str], folder: Path, options: argparse.Namespace) -> float:
    """The rate of llama2.c's program for this shape, run once with its own number of threads."""
    q8 = shape != "box" and header_of(shape).version == 2
    model, tokenizer = model_of(shape, folder)
    program = options.llama2c / ("runq" if q8 else "run")
    command = [*prefix, program, model, "-t", "0", "-s", "1", "-n", "32", "-z", tokenizer]
    return Peer(shlex.join(map(str, command))).rate(os.cpu_count() or 1)


def measures(
    shape: str, prefix: list[str], folder: Path, options: argparse.Namespace, stack: ExitStack
) -> dict[str, Callable[[], float]]:
    """What is to be measured, by name."""
    found: dict[str, Callable[[], float]] = {}
    model = model_of(shape, folder)[0]
    ours = [("default", _ROOT, 0), ("1 thread", _ROOT, 1), ("2 threads", _ROOT, 2)]
    ours += [(f"default of {checkout.name}", checkout, 0) for checkout in options.beside]
    for name, checkout, threads in ours:
        program = Program(checkout, prefix, model, threads, options.prompt, _TOKENS)
        stack.callback(program.end)
        found[name] = partial(program.rate, options.seconds)
    if options.llama2c and not options.prompt:  # llama2.c reads prompts token by token
        found["llama2.c"] = partial(llama2c, shape, prefix, folder, options)
    return found


def row(shape: str, situation: str, folder: Path, options: argparse.Namespace) -> list[list[str]]:
    """The head of the table, and a row of it."""
    around = {"quiet": quiet, "busy": busy, "quota": quota}[situation]
    with around() as prefix, ExitStack() as stack:
        calls = measures(shape, prefix, folder, options, stack)
        rounds = [{name: call() for name, call in calls.items()} for _ in range(options.rounds)]
    rates = {name: median(found[name] for found in rounds) for name in calls}
    better = max(("1 thread", "2 threads"), key=rates.__getitem__)
    ratios = {}
    for title, name in {"better": better, **{name: name for name in list(calls)[3:]}}.items():
        quotients = [found["default"] / found[name] for found in rounds]
        ratios[f"/ {title}"] = (
            f"{median(quotients):.2f} ({min(quotients):.2f}–{max(quotients):.2f})"
        )
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "-"
    head = ["shape", "machine", *rates, *ratios, "load"]
    cells = [f"{rate:,.0f}" for rate in rates.values()] + [*ratios.values()]
    print(f"  {shape}, {situation}: {' '.join(cells)}, load {load}", file=sys.stderr, flush=True)
    return [head, [shape, situation, *cells, load]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("shapes", nargs="*", default=SHAPES, metavar="SHAPE", help=f"default: {', '.join(SHAPES)}")
    add("--only", nargs="+", choices=SITUATIONS, default=SITUATIONS, metavar="MACHINE")
    add("--rounds", type=int, default=7, metavar="N")
    add("--seconds", type=float, default=1.0, metavar="S", help="of each measurement of ours")
    add("--prompt", type=int, default=0, metavar="N", help="read prompts of N tokens instead")
    add("--llama2c", type=Path, metavar="FOLDER")
    add("--beside", type=Path, nargs="+", default=[], metavar="CHECKOUT")
    add("--folder", type=Path, help="where checkpoints are kept (default: a temporary one)")
    options = parser.parse_args()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit("ended")
    )  # so that processes and folders are removed
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        found = [
            row(shape, situation, folder, options)
            for situation in options.only
            for shape in options.shapes
        ]
    head = found[0][0]
    print("\n".join(aligned(head, [cells for _, cells in found], (0, 1))))


if __name__ == "__main__":
    main()
