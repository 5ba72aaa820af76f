"""LoRA (Hu et al. 2021): a frozen matrix W gets a trained product of low rank.

y = W x + s B A x, with A (r, inputs), B (outputs, r) and s = alpha / r. B starts as 0, so that the
network starts as it was. `Pass` computes it for the matrices of linear steps whose A and B are
among the parameters, as "NAME.lora_A" and "NAME.lora_B".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from llama2np.model.program import Program
from llama2np.model.weights import as_array

TARGETS = ("wq", "wv")  # those of the paper's experiments


def low_rank_parameters(
    program: Program, rank: int, targets: Iterable[str] = TARGETS, seed: int = 0
) -> dict[str, np.ndarray]:
    """A and B of the targets in all layers, by names such as "layers.0.wq.lora_A".

    A is uniform in +-1 / sqrt(inputs), as PEFT initializes it. Raises ValueError for a rank below
    1, and for a target that no linear step of a layer has.
    """
    if rank < 1:
        raise ValueError(f"the rank of LoRA must be 1 or more, not {rank}")
    random, found = np.random.default_rng(seed), dict[str, np.ndarray]()
    names = {n for step in program.steps if step.op == "linear" for n in step.weights["w"]}
    for target in targets:
        chosen = sorted(n for n in names if n.startswith("layers.") and n.endswith(f".{target}"))
        if not chosen:
            known = sorted({n.split(".")[-1] for n in names if n.startswith("layers.")})
            raise ValueError(f"LoRA: no matrix is called {target!r}; there are {', '.join(known)}")
        for name in chosen:
            outputs, inputs = program.matrix(name).shape
            size = inputs**-0.5
            a = random.uniform(-size, size, (rank, inputs))
            found[f"{name}.lora_A"] = a.astype(np.float32)
            found[f"{name}.lora_B"] = np.zeros((outputs, rank), np.float32)
    return found


def pairs(parameters: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{name of a matrix: (A, B)} of the low-rank parts among the parameters."""
    names = (n.removesuffix(".lora_A") for n in parameters if n.endswith(".lora_A"))
    return {n: (parameters[f"{n}.lora_A"], parameters[f"{n}.lora_B"]) for n in names}


def merged(
    program: Program, parameters: Mapping[str, np.ndarray], scale: float
) -> dict[str, np.ndarray]:
    """The parameters with W + s B A, float32, in place of each A and B."""
    found = {n: a for n, a in parameters.items() if not n.endswith((".lora_A", ".lora_B"))}
    for name, (a, b) in pairs(parameters).items():
        found[name] = as_array(program.weights[name]) + np.float32(scale) * (b @ a)
    return found
