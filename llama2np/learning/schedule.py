"""The learning rate of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass

DECAYS = "cosine", "linear", "constant"


@dataclass(frozen=True, slots=True)
class Schedule:
    """Up in a straight line for `warmup` steps to `rate`, then down to rate * last at `steps`.

    decay: "cosine" (Loshchilov and Hutter 2017), "linear" or "constant".
    """

    rate: float
    steps: int
    warmup: int = 0
    decay: str = "cosine"
    last: float = 0.1

    def __post_init__(self) -> None:
        if self.decay not in DECAYS:
            raise ValueError(f"decay must be one of {', '.join(DECAYS)}, not {self.decay!r}")
        if not 0 <= self.rate < float("inf"):
            raise ValueError(f"the learning rate must not be negative, and is {self.rate}")
        if self.steps < 1 or self.warmup < 0 or not 0 <= self.last <= 1:
            raise ValueError(
                f"steps={self.steps} must be 1 or more, warmup={self.warmup} 0 or more, "
                f"last={self.last} from 0 to 1"
            )

    def rate_at(self, step: int) -> float:
        """The learning rate of a step; the first one is 0."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = min((step - self.warmup) / max(self.steps - self.warmup, 1), 1)
        share = {
            "cosine": (1 + math.cos(math.pi * done)) / 2,
            "linear": 1 - done,
            "constant": 1.0,
        }[self.decay]
        return self.rate * (self.last + (1 - self.last) * share)


@dataclass(frozen=True, slots=True)
class Phases:
    """Schedules one after the other: each begins where the one before has ended."""

    schedules: tuple[Schedule, ...]

    @property
    def steps(self) -> int:
        """The steps of all phases."""
        return sum(schedule.steps for schedule in self.schedules)

    def rate_at(self, step: int) -> float:
        """The learning rate of a step; the first one is 0."""
        for schedule in self.schedules[:-1]:
            if step < schedule.steps:
                return schedule.rate_at(step)
            step -= schedule.steps
        return self.schedules[-1].rate_at(step)
