"""What decides the result of a training, and its learning rates."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """All that decides the result, beside the corpus and the shape."""

    copying: int = 200  # steps on repeated random tokens, before those on stories
    steps: int = 10_000  # on stories
    # In the first steps, repeated names have more weight. Otherwise a network learns late to look
    # names up; with the weight until the end, it would use names too often.
    emphasis: float = 8.0
    emphasised: int = 2000
    batch: int = 16
    rate: float = 3e-3  # the highest learning rate
    warmup: int = 100
    last_rate: float = 0.02  # of the highest, at the end
    decay: float = 0.05  # weight decay of matrices
    clip: float = 1.0
    seed: int = 1


def rate_at(step: int, settings: Settings) -> float:
    """The learning rate of a step: up in a straight line, down as a cosine.

    The steps of copying have a line of their own before that, up to the same rate.
    """
    if step < settings.copying:
        return settings.rate * min((step + 1) / settings.warmup, 1)
    step -= settings.copying
    if step < settings.warmup:
        return settings.rate * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(settings.steps - settings.warmup, 1)
    share = settings.last_rate + (1 - settings.last_rate) * (1 + math.cos(math.pi * done)) / 2
    return settings.rate * share
