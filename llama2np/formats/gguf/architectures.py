"""From a GGUF file to a network: Config and Weights.

The keys are those of llama.cpp (constants.py of the package `gguf`), and so is what the files leave
unsaid about an architecture (llama.cpp's src/llama-model.cpp).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.gguf.file import GgufFile, GgufTensor
from llama2np.formats.gguf.metadata import Metadata
from llama2np.formats.gguf.rope import rope_scaling
from llama2np.formats.gguf.tensors import our_tensors
from llama2np.model.config import MAX_LAYERS, Config
from llama2np.model.networks import check_network
from llama2np.model.weights import Weights
from llama2np.output import brief

_MOST_EXPERTS = 1024
# How an encoder makes one vector of a text, by the numbers of llama.cpp.
POOLINGS = ("none", "mean", "cls", "last", "rank")
Settings = dict[str, Any]  # fields of Config


def network(file: GgufFile) -> tuple[Config, Weights]:
    """The network in a file. Raises CheckpointError if it cannot be computed here."""
    if "token_embd.weight" not in file.tensors:
        raise CheckpointError(f"{file.path}: has no token_embd.weight: is it a vocabulary only?")
    try:
        config = config_of(file.metadata, file.tensors)
        weights = Weights(our_tensors(config, file))
        check_network(config, weights)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{file.path}: {error}") from None
    return config, weights


def pooling_of(data: Metadata) -> str:
    """One of POOLINGS; "mean" where the file does not say it. Raises CheckpointError."""
    number = data.whole(".pooling_type", POOLINGS.index("mean"))
    if number >= len(POOLINGS):
        key = data.full(".pooling_type")
        raise CheckpointError(f"{data.path}: {key} = {number}, expected 0 to {len(POOLINGS) - 1}")
    return POOLINGS[number]


def config_of(data: Metadata, tensors: Mapping[str, GgufTensor]) -> Config:
    """The Config that the metadata describe. Raises CheckpointError and ValueError.

    tensors: some numbers follow from their shapes, and from tables of rotary frequencies.
    """
    name = data.text("general.architecture")
    if name not in _SETTINGS:
        raise ValueError(
            f"is of architecture {brief(name)}, which is not supported yet, expected one of "
            f"{', '.join(_SETTINGS)}"
        )
    if name != "bert" and not data.flag(".attention.causal", True):
        raise ValueError(
            f"has {data.full('.attention.causal')} = False, which is not supported yet"
        )
    return Config(**_common(data, tensors), **_SETTINGS[name](data, tensors))


def _common(data: Metadata, tensors: Mapping[str, GgufTensor]) -> Settings:
    """The numbers that all architectures have. Absent ones have llama.cpp's defaults."""
    layers, heads = data.whole(".block_count"), data.same_in_all_layers(".attention.head_count")
    if layers > MAX_LAYERS:
        raise ValueError(
            f"{data.full('.block_count')} is {layers:,}, expected at most {MAX_LAYERS}"
        )
    dim = data.whole(".embedding_length")
    head_dim = data.whole(".attention.key_length", dim // max(heads, 1))
    values = data.whole(".attention.value_length", head_dim)
    if values != head_dim:
        raise ValueError(f"has keys of width {head_dim} and values of width {values}, not yet read")
    return {
        "dim": dim,
        "hidden_dim": data.same_in_all_layers(".feed_forward_length"),
        "n_layers": layers,
        "n_heads": heads,
        "n_kv_heads": data.same_in_all_layers(".attention.head_count_kv", heads),
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "seq_len": data.whole(".context_length"),
        "head_dim": head_dim,
        "attention_scale": data.number(".attention.scale", 0.0),
    }


def _rotary(data: Metadata, tensors: Mapping[str, GgufTensor], halves: int = 1) -> Settings:
    """Rotary positions. halves: 0 if the two values of a pair are adjacent."""
    return {
        "rope_theta": data.number(".rope.freq_base", 10000.0),
        "rotary_dim": data.whole(".rope.dimension_count", 0),
        "rope_halves": halves,
        "rope_scaling": rope_scaling(data, tensors),
    }


def _llama(data: Metadata, tensors: Mapping[str, GgufTensor]) -> Settings:
    """Llama, Mistral and Mixtral, whose q and k have adjacent pairs (convert_hf_to_gguf.py)."""
    return _rms(data, tensors, 0) | {"windows": _windows(data)} | _experts(data, tensors)


def _rms(data: Metadata, tensors: Mapping[str, GgufTensor], halves: int = 1) -> Settings:
    """A network of Llama's kind."""
    eps = data.number(".attention.layer_norm_rms_epsilon")
    return {"architecture": "llama", "norm_eps": eps} | _rotary(data, tensors, halves)


def _phi3(data: Metadata, tensors: Mapping[str, GgufTensor]) -> Settings:
    return _rms(data, tensors) | {"windows": _windows(data)}


def _gemma(data: Metadata, tensors: Mapping[str, GgufTensor]) -> Settings:
    return _rms(data, tensors) | {
        "architecture": "gemma",
        "embedding_scale": math.sqrt(data.whole(".embedding_length")),
    }


def _gemma2(data: Metadata, tensors: Mapping[str, GgufTensor]) -> Settings:
    """Every second layer has a window, beginning with the first."""
    caps = {
        "attention_softcap": data.number(".attn_logit_softcapping", 50.0),
        "logit_softcap": data.number(".final_logit_softcapping", 30.0),
        "windows": _windows(data, 2, 4096),
    }
    return _gemma(data, tensors) | caps | _scale_of_27b(data, 46)


def _gemma3(data: Metadata, tensors: Mapping[str, GgufTensor]) -> Settings:
    """Of six layers, the first five have a window and a base of their own."""
    local = {
        "windows": _windows(data, 6),
        "local_rope_theta": data.number(".rope.freq_base_swa", 10000.0),
        "logit_softcap": data.number(".final_logit_softcapping", 0.0),
    }
    return _gemma(data, tensors) | local | _scale_of_27b(data, 62)


def _scale_of_27b(data: Metadata, layers: int) -> Settings:
    """The 27B models scale scores by dim / n_heads instead of head_dim. The files do not say it."""
    if data.whole(".block_count") != layers or ".attention.scale" in data:
        return {}
    heads = data.same_in_all_layers(".attention.head_count")
    return {"attention_scale": (data.whole(".embedding_length") / max(heads, 1)) ** -0.5}


def _layer_norm(data: Metadata, name: str) -> Settings:
    return {"architecture": name, "norm_eps": data.number(".attention.layer_norm_epsilon")}


def _gpt2(data: Metadata, tensors: Mapping[str, GgufTensor]) -> Settings:
    return _layer_norm(data, "gpt2")


def _phi2(data: Metadata, tensors: Mapping[str, GgufTensor]) -> Settings:
    return _layer_norm(data, "phi2") | _rotary(data, tensors)


def _gptneox(data: Metadata, tensors: Mapping[str, GgufTensor]) -> Settings:
    own = {"gelu_exact": 1, "parallel_residual": int(data.flag(".use_parallel_residual", True))}
    return _layer_norm(data, "gpt_neox") | _rotary(data, tensors) | own


def _bert(data: Metadata, tensors: Mapping[str, GgufTensor]) -> Settings:
    types = tensors.get("token_types.weight")
    own = {"gelu_exact": 1, "n_types": types.shape[0] if types else 0}
    return _layer_norm(data, "bert") | own


_SETTINGS: dict[str, Callable[[Metadata, Mapping[str, GgufTensor]], Settings]] = {
    "llama": _llama,
    "qwen2": _rms,
    "qwen3": _rms,
    "phi2": _phi2,
    "phi3": _phi3,
    "gpt2": _gpt2,
    "gptneox": _gptneox,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "bert": _bert,
}


def _windows(data: Metadata, period: int = 0, default: int = 0) -> tuple[int, ...]:
    """The window of each layer: all have one, but the last of each `period` layers.

    A file may have another period, or a flag for each layer.
    """
    window = data.whole(".attention.sliding_window", default)
    layers, key = data.whole(".block_count"), ".attention.sliding_window_pattern"
    if isinstance(flags := data.get(key), np.ndarray):
        return tuple(window if flag else 0 for flag in flags[:MAX_LAYERS].tolist())
    period = data.whole(key, period)
    return tuple(0 if period and i % period == period - 1 else window for i in range(layers))


def _experts(data: Metadata, tensors: Mapping[str, GgufTensor]) -> Settings:
    count = data.whole(".expert_count", 0)
    if count > _MOST_EXPERTS:
        raise ValueError(f"{data.full('.expert_count')} is {count:,}, more than {_MOST_EXPERTS:,}")
    return {"n_experts": count, "n_experts_used": data.whole(".expert_used_count", 0)}
