"""Data and trainers for the tests of training."""

import numpy as np
from networks import program, tiny

from llama2np.learning.batch import Batch
from llama2np.learning.passes import parameters_of
from llama2np.learning.trainer import Settings, Trainer


class Same:
    """Always the same batch."""

    name = "same"

    def __init__(self, batch):
        self._batch = batch

    def batch(self, number):
        return self._batch


class Random:
    """Random sequences of random lengths."""

    def __init__(self, name="random", count=2):
        self.name, self.count = name, count

    def batch(self, number):
        random = np.random.default_rng(number)
        lengths = random.integers(2, 10, self.count)
        return Batch.next_tokens(random.integers(0, 17, (self.count, 9)), np.minimum(lengths, 9))


def trained(path=None, steps=6, seed=0, data=None, **changes):
    config, tensors = tiny("llama")
    parameters = {n: t.astype(np.float32) for n, t in tensors.items()}
    log = changes.pop("log", None)
    settings = Settings(steps, 1e-2, dropout=0.1, seed=seed, **changes)
    network = program(config, tensors)
    return Trainer(network, parameters, data or Random(), settings, checkpoint=path, log=log)


def trainer_of(folder, steps=6, rate=1e-2, **options):
    folder.mkdir(exist_ok=True)
    config, tensors = tiny("llama", 0)
    network = program(config, tensors)
    paths = {"checkpoint": folder / "training.npz", "log": folder / "losses.jsonl"}
    settings = Settings(steps, rate)
    return Trainer(network, parameters_of(network), Random(), settings, **paths, **options)
