"""Steps of training, ours beside torch's: the same shapes, batches and optimizer, taking turns.

python -m benchmarks.training                    both shapes, two threads
python -m benchmarks.training 15M --rounds 20    one of them

It needs torch (pip install torch). Each side is a process of its own and takes one step while the
other waits, so that both see the same machine. It prints the medians, the median of the ratios of
each round with its range, and the peaks of memory.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llama2np.model.config import Config

SHAPES = {  # (config, rows, tokens of a row)
    "box": (Config(128, 320, 5, 4, 2, 1008, 256), 16, 208),
    "15M": (Config(288, 768, 6, 6, 6, 32000, 256), 8, 256),
}
_WARM_UP = 2


def _tokens(shape: str) -> Callable[[int], np.ndarray]:
    config, rows, length = SHAPES[shape]

    def batch(number: int) -> np.ndarray:
        random = np.random.default_rng(number)
        return random.integers(3, config.vocab_size, (rows, length + 1))

    return batch


def ours(shape: str, threads: int) -> Callable[[int], float]:
    """A function that takes a step and returns its loss."""
    from llama2np.learning.batch import Batch
    from llama2np.learning.initial import initial_llama
    from llama2np.learning.trainer import Settings, Trainer
    from llama2np.learning.writing import new_source
    from llama2np.model.transformer import Transformer

    config, tokens = SHAPES[shape][0], _tokens(shape)

    class Data:
        name = "random"

        def batch(self, number: int) -> Batch:
            return Batch.next_tokens(tokens(number))

    parameters = initial_llama(config)
    weights = new_source(config, parameters).weights()
    program = Transformer(config, weights, engine="numpy").program
    trainer = Trainer(program, parameters, Data(), Settings(1000), threads=threads)
    return lambda number: float(trainer.one_step()["loss"])


def torchs(shape: str, threads: int) -> Callable[[int], float]:
    """The same in torch, as llama2.c's train.py does it: eager, float32, a fused AdamW."""
    import torch
    from torch.nn import functional

    from tests.torch_network import Network

    torch.set_num_threads(threads)
    network, tokens = Network(SHAPES[shape][0]), _tokens(shape)
    weights = list(network.parameters())
    groups = [
        {"params": [w for w in weights if w.dim() > 1], "weight_decay": 0.1},
        {"params": [w for w in weights if w.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.95), fused=True)

    def step(number: int) -> float:
        batch = torch.from_numpy(tokens(number))
        logits = network(batch[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        return loss.item()

    return step


SIDES = {"ours": ours, "torch": torchs}


def _serve(side: str, shape: str, threads: int) -> None:
    """Take a step for each line of standard input, and print its seconds; then the peak in MB."""
    step = SIDES[side](shape, threads)
    for number, _ in enumerate(sys.stdin):
        started = time.perf_counter()
        step(number)
        print(time.perf_counter() - started, flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)


def compare(shape: str, threads: int, rounds: int) -> None:
    """Let both sides take turns, and print what they took."""
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    # A thread that waits must sleep: otherwise it takes the processor of the other side.
    env = os.environ | {"PYTHONPATH": paths, "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
    command = [sys.executable, "-m", "benchmarks.training", shape, "--threads", str(threads)]
    sides = {
        side: subprocess.Popen(
            [*command, "--side", side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        for side in SIDES
    }
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(_WARM_UP + rounds):
        for side, process in sides.items():
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("step\n")
            process.stdin.flush()
            seconds[side].append(float(process.stdout.readline()))
    peaks = {side: float(process.communicate()[0]) for side, process in sides.items()}
    a, b = (np.array(seconds[side][_WARM_UP:]) for side in SIDES)
    ratios = b / a
    _, rows, length = SHAPES[shape]
    print(
        f"{shape}, {rows} x {length}, {threads} threads: ours {np.median(a):.3f} s a step "
        f"({peaks['ours']:.0f} MB), torch {np.median(b):.3f} s ({peaks['torch']:.0f} MB); "
        f"rate ours / torch {np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})",
        flush=True,
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shapes", nargs="*", choices=[[], *SHAPES], metavar="SHAPE")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for shape in options.shapes or SHAPES:
        if options.side:
            _serve(options.side, shape, options.threads)
        else:
            compare(shape, options.threads, options.rounds)


if __name__ == "__main__":
    main()
