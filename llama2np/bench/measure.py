"""Tokens per second of a model, of other programs, and the limits of the machine, alternately.

Each repeat measures everything once, one after the other, so that other work on the machine affects
all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median, stdev
from typing import Literal

import numpy as np

from llama2np import kernels
from llama2np.bench.arithmetic import bytes_to_generate, operations_to_read
from llama2np.bench.machine import Memory, sgemm_speed
from llama2np.bench.peer import Peer
from llama2np.model.transformer import State, Transformer

Kind = Literal["prompt", "generate"]
_PROMPT, _GENERATE = 512, 128  # tokens; these and the depths are llama-bench's
_DEPTHS = (0, 512, 2048)


@dataclass(frozen=True, slots=True)
class Task:
    """Reading a prompt of `count` tokens, or generating `count` tokens, after `depth` others."""

    kind: Kind
    count: int
    depth: int

    @property
    def name(self) -> str:
        """The name that llama-bench uses: pp512, tg128."""
        return f"{'pp' if self.kind == 'prompt' else 'tg'}{self.count}"

    @property
    def end(self) -> int:
        """The number of positions that it needs."""
        return self.depth + self.count


@dataclass(frozen=True, slots=True)
class Series:
    """One number from each repeat."""

    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def spread(self) -> float:
        """The standard deviation, 0 for a single repeat."""
        return stdev(self.values) if len(self.values) > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """Tokens per second of a test, and its share of the machine's limit."""

    task: Task
    threads: int
    rate: Series = field(default_factory=Series)
    share: Series = field(default_factory=Series)  # relative to the read speed, or to the flop/s


@dataclass(frozen=True, slots=True)
class PeerResult:
    """Tokens per second of another program, and our speed divided by that."""

    command: str
    threads: int
    rate: Series = field(default_factory=Series)
    ratio: Series = field(default_factory=Series)


@dataclass(frozen=True, slots=True)
class MachineResult:
    """Bytes per second read by `threads` threads, and operations per second of NumPy's sgemm."""

    threads: int
    read: Series = field(default_factory=Series)
    sgemm: Series = field(default_factory=Series)


@dataclass(frozen=True, slots=True)
class Report:
    """All results of `measure`, in the order of threads and tasks."""

    results: list[Result]
    peers: list[PeerResult]
    machines: list[MachineResult]


def plan(
    seq_len: int,
    prompt: int | None = None,
    generate: int | None = None,
    depths: Sequence[int] | None = None,
) -> list[Task]:
    """The tests that fit into a context, by depth. None means the default, reduced to what fits.

    0 tokens mean no test of that kind. Raises ValueError if no test is left, or if a count or a
    depth in the arguments does not fit.
    """
    for name, count in (("prompt", prompt), ("generate", generate)):
        if (count or 0) > seq_len:
            raise ValueError(f"{name}: {count} tokens do not fit into the context of {seq_len}")
    counts: dict[Kind, int] = {
        "prompt": min(_PROMPT, seq_len) if prompt is None else prompt,
        "generate": min(_GENERATE, seq_len) if generate is None else generate,
    }
    tasks = []
    for depth in sorted(set(_DEPTHS if depths is None else depths)):
        here = [Task(kind, count, depth) for kind, count in counts.items() if count]
        here = [task for task in here if task.end <= seq_len]
        if not here and depths is not None and any(counts.values()):
            raise ValueError(
                f"depth {depth}: neither {counts['prompt']} tokens to read nor "
                f"{counts['generate']} to generate fit after it in the context of {seq_len}"
            )
        tasks += here
    if not tasks:
        raise ValueError("nothing to measure: both prompt and generate are 0")
    return tasks


class _Model:
    """A model with a full KV cache, which can continue at any depth."""

    def __init__(self, transformer: Transformer, tasks: Sequence[Task]):
        self._transformer, config = transformer, transformer.config
        self._state = State(config)
        end = max(task.end for task in tasks)
        # BOS and EOS may be among the tokens: nothing here stops at them.
        self._tokens = np.random.default_rng(0).integers(0, config.vocab_size, end)
        transformer.forward(self._tokens, self._state)

    def rate(self, task: Task, count: int | None = None) -> float:
        """Tokens per second of a test, or of its first `count` tokens."""
        count = count or task.count
        self._state.pos = task.depth  # the cache after it is overwritten
        tokens = self._tokens[task.depth : task.depth + count]
        start = time.perf_counter()
        if task.kind == "prompt":
            self._transformer.forward(tokens, self._state)
        else:
            token = int(tokens[0])
            for _ in range(count):
                token = int(self._transformer.forward([token], self._state).argmax())
        return count / (time.perf_counter() - start)

    def share(self, task: Task, rate: float, machine: MachineResult) -> float:
        """The rate as a share of the machine's latest measured limit."""
        program = self._transformer.program
        if task.kind == "prompt":
            needed = operations_to_read(program, task.depth, task.count)
            return rate * needed / machine.sgemm.values[-1]
        needed = bytes_to_generate(program, task.depth, task.count)
        return rate * needed / machine.read.values[-1]


def measure(
    transformer: Transformer,
    tasks: Sequence[Task],
    threads: Sequence[int],
    peers: Sequence[Peer] = (),
    repeats: int = 5,
    progress: Callable[[str], object] = lambda _: None,
) -> Report:
    """Measure each test with each number of threads, `repeats` times, alternately.

    Peers are compared with the first test that generates, or with the first of all. `progress` is
    called with a description of the next measurement. The process keeps the last number of threads.
    Raises ValueError for more threads than the machine has, and for a peer that fails.
    """
    for count in threads:
        kernels.set_threads(count)
    report = Report(
        [Result(task, count) for count in threads for task in tasks],
        [PeerResult(peer.command, count) for count in threads for peer in peers],
        [MachineResult(count) for count in threads],
    )
    progress("warming up")
    memory, model = Memory(), _Model(transformer, tasks)
    for task in tasks:
        model.rate(task, count=min(task.count, 8))  # loads the kernels
    for repeat in range(1, repeats + 1):
        for machine in report.machines:
            progress(f"repeat {repeat} of {repeats}, threads {machine.threads}")
            _measure_once(report, machine, model, memory, peers)
    return report


def _measure_once(
    report: Report, machine: MachineResult, model: _Model, memory: Memory, peers: Sequence[Peer]
) -> None:
    """Measure everything once with one number of threads."""
    kernels.set_threads(machine.threads)
    machine.read.values.append(memory.read_speed())
    machine.sgemm.values.append(sgemm_speed(machine.threads))
    results = [result for result in report.results if result.threads == machine.threads]
    for result in results:
        rate = model.rate(result.task)
        result.rate.values.append(rate)
        result.share.values.append(model.share(result.task, rate, machine))
    ours = next((r for r in results if r.task.kind == "generate"), results[0])
    theirs = [result for result in report.peers if result.threads == machine.threads]
    for peer, other in zip(peers, theirs, strict=True):
        rate = peer.rate(machine.threads)
        other.rate.values.append(rate)
        other.ratio.values.append(ours.rate.values[-1] / rate)
