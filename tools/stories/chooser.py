"""Every choice of the teller goes through here, and is counted."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Chooser:
    """A seeded source of choices that adds up how surprising they were.

    `nats` is minus the log-probability of all choices so far. Averaged over stories it is an upper
    bound of the entropy of the texts: two ways of choosing may give one text.
    """

    def __init__(self, seed: str):
        self._random = random.Random(seed)
        self.nats = 0.0

    def pick(self, options: Sequence[T]) -> T:
        """One of `options`, each as likely."""
        if len(options) == 1:
            return options[0]
        self.nats += math.log(len(options))
        return options[int(self._random.random() * len(options))]

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        happens = self._random.random() < probability
        self.nats -= math.log(probability if happens else 1 - probability)
        return happens

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different ones of `options`, in any order."""
        left, taken = list(options), []
        for _ in range(min(count, len(left))):
            taken.append(self.pick(left))
            left.remove(taken[-1])
        return taken
