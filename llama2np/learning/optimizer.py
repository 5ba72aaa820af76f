"""AdamW: Adam with decoupled weight decay (Kingma and Ba 2015; Loshchilov and Hutter 2019)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class AdamWOptions:
    """The numbers of AdamW.

    decay_after: False is torch's order: the weights shrink by rate * weight_decay, then the step is
    taken, whose denominator is sqrt(v / (1 - beta2^t)) + eps. True is that of a well-known course
    (CMU 11-711): first the step, whose denominator is sqrt(v) + eps with both corrections in the
    rate (section 2 of Kingma and Ba, at its end), then the decay.
    """

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_after: bool = False

    def __post_init__(self) -> None:
        for name, value in zip(("beta1", "beta2"), self.betas, strict=True):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be from 0 to less than 1, not {value}")
        if not self.eps > 0 or not 0 <= self.weight_decay < float("inf"):
            raise ValueError(
                f"eps={self.eps} must be positive, weight_decay={self.weight_decay} not negative"
            )


def is_matrix(_name: str, array: np.ndarray) -> bool:
    """What shrinks by default: matrices, not norms and biases."""
    return array.ndim > 1


class AdamW:
    """Changes parameters {name: float32 array} in place, and keeps their moments.

    m and v are running means of the gradient and of its square, step by step:
    m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2; a parameter moves by
    -rate * m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps). decays: which parameters shrink.
    """

    def __init__(
        self,
        parameters: Mapping[str, np.ndarray],
        options: AdamWOptions | None = None,
        decays: Callable[[str, np.ndarray], bool] = is_matrix,
    ):
        self.parameters, self.options = parameters, options or AdamWOptions()
        self.decayed = {name for name, array in parameters.items() if decays(name, array)}
        self.step = 0
        self.m = {name: np.zeros_like(array) for name, array in parameters.items()}
        self.v = {name: np.zeros_like(array) for name, array in parameters.items()}

    def update(self, gradients: Mapping[str, np.ndarray], rate: float) -> None:
        """Take one step with a learning rate. The gradients have the names of the parameters."""
        self.step += 1
        for name, parameter in self.parameters.items():
            self._update(name, parameter, gradients[name], rate)

    def _update(self, name: str, p: np.ndarray, g: np.ndarray, rate: float) -> None:
        o, (b1, b2), kind = self.options, self.options.betas, p.dtype.type
        shrink = rate * o.weight_decay if name in self.decayed else 0.0
        if shrink and not o.decay_after:
            p *= kind(1 - shrink)
        m, v = self.m[name], self.v[name]
        m *= kind(b1)
        m += g * kind(1 - b1)
        v *= kind(b2)
        work = g * g
        work *= kind(1 - b2)
        v += work
        np.sqrt(v, out=work)
        corrected = (1 - b2**self.step) ** 0.5
        size = rate / (1 - b1**self.step)
        if o.decay_after:
            size *= corrected
        else:
            work /= kind(corrected)
        work += kind(o.eps)
        np.divide(m, work, out=work)
        work *= kind(size)
        p -= work
        if shrink and o.decay_after:
            p -= p * kind(shrink)  # not p * (1 - shrink): float32 knows only a few values near 1


def clip(gradients: Mapping[str, np.ndarray], most: float) -> float:
    """Scale all gradients, in place, so that their common norm is at most `most`; 0: do not.

    Returns the norm before (Pascanu et al. 2013). The factor is torch's, most / (norm + 1e-6).
    """
    squares = (float(np.vdot(g, g)) for g in gradients.values())
    norm = float(sum(squares) ** 0.5)
    if most and norm > most:
        for gradient in gradients.values():
            gradient *= gradient.dtype.type(most / (norm + 1e-6))
    return norm
