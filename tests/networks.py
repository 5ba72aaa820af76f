"""Tiny networks of every family, with random weights."""

import re

import numpy as np

from llama2np.formats.huggingface.families import FAMILIES
from llama2np.model.config import Config
from llama2np.model.networks import description, encoder_programs, is_encoder
from llama2np.model.program import Program
from llama2np.model.weights import Dense, Weights, shape_of

SHAPE = dict(
    dim=12, hidden_dim=20, n_layers=2, n_heads=3, n_kv_heads=3, vocab_size=17, seq_len=16,
    rope_halves=1,
)  # fmt: skip
OPTIONS = {
    "mistral": {"windows": (3, 3)},
    "mixtral": {"n_experts": 4, "n_experts_used": 2},
    "gpt_neox": {"gelu_exact": 1, "rotary_dim": 2},
    "gemma": {"embedding_scale": 12**0.5},
    "gemma2": {"attention_softcap": 0.7, "logit_softcap": 0.9, "windows": (0, 3)},
    "gemma3_text": {"head_dim": 6, "local_rope_theta": 100.0, "windows": (4, 0)},
    "gpt2": {"attention_scale_by_layer": 1},
    "bert": {"n_types": 2, "gelu_exact": 1},
}
_HEADS = {"pooler": (12, 12), "mlm_dense": (12, 12), "nsp": (2, 12), "labels": (3, 12)}


def shape_of_any(name: str, config: Config) -> tuple[int, ...]:
    base = name.split(".")[2] if name.startswith("layers.") else name.split(".")[0]
    if base == "experts":
        shape = config.hidden_dim, config.dim
        return shape[::-1] if name.endswith("w_down") else shape
    found = _HEADS.get(base) or shape_of(name.removesuffix(".bias"), config) or (config.dim,)
    return found[:1] if name.endswith(".bias") else found


def tiny(family: str, seed: int = 0, tied: bool = False, **changes) -> tuple[Config, dict]:
    """A Config and its random weights by name: arrays of float64, all of them different from 0."""
    of = FAMILIES[family]
    fields = SHAPE | {"architecture": of.architecture} | OPTIONS.get(family, {}) | changes
    config, random = Config(**fields), np.random.default_rng(seed)
    biased = set(" ".join(of.biases.values()).split())
    tensors = {}
    for name, _ in of.modules(config):
        if (tied and name == "classifier") or (name == "labels" and not config.n_labels):
            continue
        names = [name, f"{name}.bias"] if re.sub(r".*\.", "", name) in biased else [name]
        for each in names:
            shape = shape_of_any(each, config)
            values = random.normal(size=shape) * 0.4
            tensors[each] = values + ("norm" in each and not each.endswith("bias"))
    return config, tensors


def weights_of(tensors: dict, tied: bool = False) -> Weights:
    arrays = {n: np.asarray(t, np.float32) for n, t in tensors.items()}
    made = {n: Dense(t) if t.ndim == 2 else t for n, t in arrays.items()}
    if tied:
        made["classifier"] = made["embedding"]
    return Weights(made)


def with_mlm(weights: Weights, config: Config) -> Weights:
    """BERT's weights with those of its head for masked tokens, which is tied to the embedding."""
    bias = np.zeros(config.vocab_size, np.float32)
    return Weights(dict(weights) | {"classifier": weights["embedding"], "classifier.bias": bias})


def program(config: Config, tensors: dict, tied: bool = False) -> Program:
    """The program of a decoder, or the body of an encoder."""
    weights = weights_of(tensors, tied)
    if is_encoder(config):
        return encoder_programs(config, with_mlm(weights, config))["body"]
    return Program(config, weights, description(config))


def slopes(loss, arrays: dict, gradients: dict, seed: int = 1) -> dict:
    """{name: (slope, expected slope, largest slope)} along a random direction in each array.

    The slope is a central difference of loss(arrays), the expected one that of the gradient; the
    largest is that along the gradient itself. arrays: float64, by name.
    """
    random, found = np.random.default_rng(seed), {}
    for name, array in arrays.items():
        step = random.normal(size=array.shape)
        step *= 1e-5 / np.linalg.norm(step)
        up, down = (loss(arrays | {name: array + s * step}) for s in (1, -1))
        size = np.linalg.norm(gradients[name])
        found[name] = (up - down) / 2e-5, (gradients[name] * step).sum() * 1e5, size
    return found
