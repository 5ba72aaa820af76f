"""From a Config and Weights to the programs of a network: one for a decoder, several for BERT."""

from __future__ import annotations

from llama2np.model import architectures
from llama2np.model.architectures import ARCHITECTURES
from llama2np.model.block import Describe
from llama2np.model.config import Config
from llama2np.model.program import Program
from llama2np.model.weights import Weights

# The heads of an encoder, and the tensor that a network with such a head has.
HEADS: dict[str, tuple[Describe, str]] = {
    "pooler": (architectures.bert_pooler, "pooler"),
    "mlm": (architectures.bert_mlm, "mlm_dense"),
    "pairs": (architectures.bert_pairs, "nsp"),
    "labels": (architectures.bert_labels, "labels"),
}


def description(config: Config) -> Describe:
    """The description of a config's architecture. Raises ValueError for an unknown name."""
    if config.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"no architecture is called {config.architecture!r}; there are {known}")
    return ARCHITECTURES[config.architecture]


def is_encoder(config: Config) -> bool:
    """Whether the network reads whole texts, and does not continue them."""
    return config.architecture == "bert"


def check_predicts_tokens(config: Config) -> None:
    """Raise ValueError for a network that classifies texts: its logits are for labels."""
    if config.n_labels:
        raise ValueError(
            "this network was trained to classify texts: it has logits of "
            f"{config.n_labels} labels, which forward() returns, and none of the next token"
        )


def encoder_programs(config: Config, weights: Weights) -> dict[str, Program]:
    """The programs of an encoder: "body", and one for each head.

    Raises ValueError for weights that do not fit, or that no program uses.
    """
    by_program: dict[str, list[str]] = {"body": []}
    for name in weights:
        if name.startswith("layers.") or name.split(".")[0] in _BODY:
            by_program["body"].append(name)
    describes = {"body": description(config)}
    for head, (describe, own) in HEADS.items():
        if own in weights:
            describes[head] = describe
            by_program[head] = [name for name in weights if name.split(".")[0] in _OF_HEADS[head]]
    used = {name for names in by_program.values() for name in names}
    if "classifier" not in used and "mlm" not in describes:
        used |= {"classifier", "classifier.bias"}  # tied to the embedding, but no head uses it
    if unused := [name for name in weights if name not in used]:
        raise ValueError(f"the network does not use {unused[0]}")
    return {
        name: Program(config, Weights({n: weights[n] for n in by_program[name]}), describe)
        for name, describe in describes.items()
    }


def check_network(config: Config, weights: Weights) -> None:
    """Raise ValueError unless the weights have what the network needs, and nothing else."""
    if is_encoder(config):
        encoder_programs(config, weights)
    else:
        Program(config, weights, description(config))


_BODY = "embedding", "position_embedding", "type_embedding", "embedding_norm"
_OF_HEADS = {
    "pooler": ("pooler",),
    "mlm": ("mlm_dense", "mlm_norm", "classifier"),
    "pairs": ("nsp",),
    "labels": ("labels",),
}
