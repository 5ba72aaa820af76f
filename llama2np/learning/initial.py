"""Weights to start a training with."""

from __future__ import annotations

import numpy as np

from llama2np.model.config import Config
from llama2np.model.weights import LAYER_SHAPES, SHAPES

_DEVIATION = 0.02  # of all matrices, as in GPT-2 (Radford et al. 2019) and llama2.c


def initial_llama(
    config: Config, tied: bool = True, seed: int = 0, by_width: bool = False
) -> dict[str, np.ndarray]:
    """Random weights of a plain Llama, {our name: float32 array}; norms are 1.

    Matrices are normal with deviation 0.02; those at the end of a branch (wo, w_down) with
    0.02 / sqrt(2 n_layers), so that the residual stream does not grow with the depth. tied: the
    classifier is the embedding. by_width: matrices between activations have the deviation
    1 / sqrt(their inputs) in place of 0.02, which keeps the size of what passes through them (LeCun
    et al. 1998); small networks then learn faster.
    """
    random, found = np.random.default_rng(seed), {}
    names = [*(n for n in SHAPES if n not in LAYER_SHAPES and not (tied and n == "classifier"))]
    names += [f"layers.{i}.{name}" for i in range(config.n_layers) for name in LAYER_SHAPES]
    for name in names:
        base = name.split(".")[-1]
        shape = tuple(int(getattr(config, number)) for number in SHAPES[base])
        if len(shape) == 1:
            found[name] = np.ones(shape, np.float32)
            continue
        ends = base in ("wo", "w_down")
        deviation = shape[1] ** -0.5 if by_width and base in LAYER_SHAPES else _DEVIATION
        if ends:
            deviation /= (2 * config.n_layers) ** 0.5
        found[name] = random.standard_normal(shape, np.float32) * np.float32(deviation)
    return found
