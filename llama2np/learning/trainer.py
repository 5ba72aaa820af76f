"""The training loop: batches in, parameters changed, losses out; resumable to the last bit."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from llama2np.learning import saved
from llama2np.learning.batch import Batch
from llama2np.learning.dropout import Dropout
from llama2np.learning.gradients import batch_gradients, batch_loss
from llama2np.learning.loss import Loss
from llama2np.learning.optimizer import AdamW, AdamWOptions, clip, is_matrix
from llama2np.learning.passes import Parameters
from llama2np.learning.schedule import Phases, Schedule
from llama2np.learning.shards import in_order, shards
from llama2np.model.program import Program
from llama2np.processors import processors

StrPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides a training, beside the network and the data.

    steps: updates of the parameters; each has `accumulate` batches. rate, warmup, decay, last_rate:
    see Schedule. betas, eps, weight_decay, decay_after: see AdamWOptions; decay_all: also norms and
    biases shrink. clip: the largest norm of the gradients, 0 for none. dropout: see Dropout.
    recompute: less memory, more time.
    """

    steps: int
    rate: float = 5e-4
    warmup: int = 0
    decay: str = "cosine"
    last_rate: float = 0.1
    accumulate: int = 1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_after: bool = False
    decay_all: bool = False
    clip: float = 1.0
    dropout: float = 0.0
    seed: int = 0
    recompute: bool = False

    def __post_init__(self) -> None:
        self.schedule, self.adamw, Dropout(self.dropout, 0, ())  # they check their numbers
        if self.accumulate < 1 or not self.clip >= 0 or self.seed < 0:
            raise ValueError(
                f"accumulate={self.accumulate} must be 1 or more, clip={self.clip} and "
                f"seed={self.seed} not negative"
            )

    @property
    def schedule(self) -> Schedule:
        """The learning rates."""
        return Schedule(self.rate, self.steps, self.warmup, self.decay, self.last_rate)

    @property
    def adamw(self) -> AdamWOptions:
        """The numbers of the optimizer."""
        return AdamWOptions(self.betas, self.eps, self.weight_decay, self.decay_after)


class Data(Protocol):
    """Where batches come from: a function of the number of the batch, so that nothing is kept."""

    def batch(self, number: int) -> Batch:
        """The batch of that number: 0, 1, 2 ... without end."""
        ...

    @property
    def name(self) -> str:
        """What distinguishes this data from other data: in the checkpoint."""
        ...


class Trainer:
    """Trains parameters on data.

    program: the network; parameters: see `Pass`, changed in place. checkpoint: a file that is
    written every so often; if it is there, training goes on from it, with the same losses to the
    last bit. log: a file that gets a line of JSON for each
    step: step, loss (nats per target), norm (of the gradients before clipping), rate, targets,
    seconds. schedule: in place of that of the settings. threads: by default as many as there are
    processors; the losses do not depend on it. allow_change: go on from a checkpoint that was made
    with other settings or data, such as a smaller rate or more steps. Raises CheckpointError for a
    checkpoint of another training.
    """

    def __init__(
        self,
        program: Program,
        parameters: dict[str, np.ndarray],
        data: Data,
        settings: Settings,
        *,
        checkpoint: StrPath | None = None,
        log: StrPath | None = None,
        schedule: Phases | None = None,
        threads: int | None = None,
        allow_change: bool = False,
        **options: Any,
    ):
        self.program, self.parameters, self.data = program, parameters, data
        self.settings, self.checkpoint, self.options = settings, checkpoint, options
        self.threads = threads or processors()
        self.schedule = settings.schedule if schedule is None else schedule
        decays = (lambda *_: True) if settings.decay_all else is_matrix
        self.optimizer = AdamW(parameters, settings.adamw, decays)
        self.losses: list[float] = []
        self.norms: list[float] = []
        self._log = saved.Log(log)
        self._failed: bool | None = None  # whether the last attempt to write a file has failed
        self._whole = True  # False while the parameters, their moments and the losses change
        if checkpoint is not None and os.path.exists(checkpoint):
            identity = None if allow_change else self._identity()
            self.losses, self.norms = saved.load(checkpoint, self.optimizer, identity)
        if log is not None:
            saved.cut_log(log, self.step)

    @property
    def step(self) -> int:
        """The number of steps taken."""
        return self.optimizer.step

    def run(
        self,
        until: int | None = None,
        every: int = 100,
        progress: Callable[[int, float], object] = lambda step, loss: None,
        unsaved: Callable[[OSError], object] | None = None,
    ) -> None:
        """Train up to a step, by default the last; write the checkpoint after each `every` steps.

        progress: called after each step with its number and loss. If an exception such as
        KeyboardInterrupt ends the training, the checkpoint is written first. unsaved: called if a
        file cannot be written; training goes on, and the next step tries again. Raises ValueError
        if the loss is no number, or would be none after a step whose checkpoint is due, which is
        then not written; and OSError if a file cannot be written: with `unsaved` only before the
        first step and after the last of the schedule.
        """
        until = self.schedule.steps if until is None else until
        if self._failed is None:
            self._log.write()
        try:
            while self.step < until:
                started = time.perf_counter()
                line = self.one_step()
                self._log.add(line | {"seconds": round(time.perf_counter() - started, 4)})
                due = self._failed or self.step % every == 0 or self.step == until
                error = self._stored(due)
                if error is not None and (unsaved is None or self.step == self.schedule.steps):
                    raise error
                if error is not None and unsaved is not None and not self._failed:
                    unsaved(error)
                self._failed = error is not None
                progress(self.step, self.losses[-1])
        except BaseException:
            with suppress(OSError):
                if self._whole:
                    self.save()
            raise

    def _stored(self, checkpoint: bool) -> OSError | None:
        """Write the log, and maybe the checkpoint; return what has failed."""
        if checkpoint:
            self._check()
        try:
            self._log.write()
            if checkpoint:
                self.save()
        except OSError as error:
            return error
        return None

    def _check(self) -> None:
        """Raise ValueError if the last step has spoilt the network: the checkpoint stays then."""
        batch = self.data.batch(self.step * self.settings.accumulate)
        losses = _losses(self.program, self.parameters, [batch], self.threads, **self.options)
        with np.errstate(all="ignore"):
            total = sum(loss.total for loss in losses)
        if not math.isfinite(total):
            self._whole = False
            rate = self.schedule.rate_at(self.step - 1)
            raise ValueError(
                f"step {self.step}: after it, the loss of the next batch is {total}: try a smaller "
                f"learning rate (now {rate:g}){self._earlier()}"
            )

    def one_step(self) -> dict[str, Any]:
        """Take one step; return its line of the log, without the time."""
        rate = self.schedule.rate_at(self.step)
        with np.errstate(all="ignore"):
            loss, count, gradients = self._gradients()
            norm = clip(gradients, self.settings.clip)
            self._whole = False
            if not (math.isfinite(loss) and math.isfinite(norm)):  # the steps before have spoilt it
                raise ValueError(
                    f"step {self.step + 1}: the loss is {loss}, the norm of the gradients {norm}: "
                    f"try a smaller learning rate (now {rate:g}){self._earlier()}"
                )
            self.optimizer.update(gradients, rate)
            self.losses.append(loss)
            self.norms.append(norm)
            self._whole = True
        return {"step": self.step, "loss": loss, "norm": norm, "rate": rate, "targets": count}

    def _earlier(self) -> str:
        if self.checkpoint is None or not os.path.exists(self.checkpoint):
            return ""
        return (
            f"; {self.checkpoint} has an earlier state, from which the changed training can go on"
        )

    def _gradients(self) -> tuple[float, int, dict[str, np.ndarray]]:
        """The mean loss over the batches of a step, its targets, and the gradients."""
        s, first = self.settings, self.step * self.settings.accumulate
        batches = {first + i: self.data.batch(first + i) for i in range(s.accumulate)}
        parts = [((n, i), part) for n, b in batches.items() for i, part in enumerate(shards(b))]
        weight, total = sum(batch.weight for batch in batches.values()), 0.0

        def computed(part: tuple[tuple[int, int], Batch]) -> tuple[Loss, dict[str, np.ndarray]]:
            turn, batch = part
            dropout = Dropout(s.dropout, s.seed, turn) if s.dropout else None
            with np.errstate(all="ignore"):  # of this thread: one_step finds what goes wrong
                return batch_gradients(
                    *(self.program, self.parameters, batch, 1 / weight),
                    recompute=s.recompute,
                    dropout=dropout,
                    **self.options,
                )

        sums: dict[str, np.ndarray] = {}
        for loss, gradients in in_order(computed, parts, self.threads):
            total += loss.total
            for name, gradient in gradients.items():
                sums[name] = np.add(sums[name], gradient, sums[name]) if name in sums else gradient
        return total / weight, sum(len(batch.rows) for batch in batches.values()), sums

    def save(self) -> None:
        """Write the checkpoint, if there is to be one. Raises OSError; the old one then stays."""
        if self.checkpoint is not None:
            saved.save(self.checkpoint, self.optimizer, self._identity(), self.losses, self.norms)

    def _identity(self) -> str:
        """What must be equal for a training to go on."""
        of = {"settings": asdict(self.settings), "data": self.data.name}
        if self.schedule != self.settings.schedule:
            of["schedule"] = asdict(self.schedule)
        of["shapes"] = {name: list(array.shape) for name, array in self.parameters.items()}
        return json.dumps(of, sort_keys=True)


@dataclass(frozen=True, slots=True)
class Score:
    """The mean loss in nats per target, and the share of targets with the largest logit."""

    loss: float
    accuracy: float
    count: int


def predictions(
    program: Program, parameters: Parameters, batches: Iterable[Batch], **options: Any
) -> np.ndarray:
    """The output with the largest logit for each target of batches, one after the other: (n,)."""
    found = [loss.predicted for loss in _losses(program, parameters, batches, **options)]
    return np.concatenate([np.zeros(0, np.int64), *found])


def score(
    program: Program, parameters: Parameters, batches: Iterable[Batch], **options: Any
) -> Score:
    """How well a network predicts batches, without dropout. Raises ValueError for no batches."""
    total, right, count = 0.0, 0, 0
    for loss in _losses(program, parameters, batches, **options):
        total, right, count = total + loss.total, right + loss.right, count + loss.count
    if not count:
        raise ValueError("there is nothing to predict: expected one sequence or more")
    return Score(total / count, right / count, count)


def _losses(
    program: Program,
    parameters: Parameters,
    batches: Iterable[Batch],
    threads: int | None = None,
    **options: Any,
) -> Iterator[Loss]:
    """The losses of the shards of batches, by default by all processors."""

    def computed(part: Batch) -> Loss:
        with np.errstate(all="ignore"):  # of this thread
            return batch_loss(program, parameters, part, **options)

    parts = (part for batch in batches for part in shards(batch))
    return in_order(computed, parts, threads or processors())
