"""Hugging Face's Llama folders: config.json, and weights in safetensors or pytorch_model.bin.

Features that the forward pass does not compute are rejected by name: other architectures, RoPE
scaling, biases, quantized weights. The field names are those of transformers' LlamaConfig, in its
old and new spellings.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llama2np.formats import kinds, safetensors
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.dtypes import dtype_of
from llama2np.formats.json_file import LARGEST_INDEX, JsonFile
from llama2np.formats.names import bare, unwrapped
from llama2np.formats.source import Source, Stored, checked, halved, interleaved
from llama2np.formats.torch_zip import TorchFile
from llama2np.model.config import Config
from llama2np.output import brief

_NAMES = {
    "embedding": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "classifier": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "w_gate": "mlp.gate_proj",
    "w_up": "mlp.up_proj",
    "w_down": "mlp.down_proj",
}
_IGNORED = "rotary_emb.inv_freq"  # a table that old versions saved
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# Fields that change the computation, and their values for the computation that we do.
_NEUTRAL = {
    "hidden_act": ("silu", None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "quantization_config": (None,),
    "sliding_window": (None,),
    "partial_rotary_factor": (1, None),
}
_LONGEST_NAME = 200  # of a shard
_DEFAULT_ROPE = ("default", None)


@kinds.reader("hf", CheckpointError)
def read(folder: str | os.PathLike[str]) -> Source:
    """Open a Llama in Hugging Face's form. Raises CheckpointError, and OSError."""
    folder = Path(folder)
    params = JsonFile(folder / "config.json")
    _refuse_the_unknown(params)
    found = {name: tensor for name, tensor in _tensors(folder).items() if _IGNORED not in name}
    places = unwrapped({name: name for name in found}, str(folder))  # by their bare names
    layers, tied = params.whole("num_hidden_layers"), params.get("tie_word_embeddings") is True
    if layers > len(found):
        raise CheckpointError(
            f"{params.path}: num_hidden_layers={layers}, found {len(found)} tensors in all"
        )
    config, tensors = _config(params), {}
    for ours, theirs in hf_names(config):
        if name := places.get(bare(theirs)):
            tensor = found.pop(name)
            dtype_of(tensor.dtype, f"{folder}: {name}")
            rotary = ours.startswith(("wq.", "wk.")) and len(tensor.shape) == 2
            whole_heads = rotary and tensor.shape[0] % config.head_dim == 0  # else misshapen
            tensors[ours] = interleaved(tensor, config.head_dim) if whole_heads else tensor
    if not tied and "classifier" not in tensors:
        raise CheckpointError(
            f"{folder}: has no lm_head.weight, and config.json does not say tie_word_embeddings"
        )
    return checked(str(folder), config, tensors | found, tied)


def hf_names(config: Config) -> Iterator[tuple[str, str]]:
    """Yield (our name, Hugging Face's) of each tensor of a network."""
    yield from _NAMES.items()
    for i in range(config.n_layers):
        for ours, theirs in _LAYER_NAMES.items():
            yield f"{ours}.{i}", f"model.layers.{i}.{theirs}.weight"


def hf_tensor(source: Source, name: str) -> Stored:
    """The tensor of our name, with its rows in Hugging Face's order."""
    rotary = name.startswith(("wq.", "wk."))
    tensor = source.tensors[name]
    return halved(tensor, source.config.head_dim) if rotary else tensor


def hf_config(source: Source, dtype: str) -> dict[str, Any]:
    """config.json of a network, for old and new versions of transformers."""
    c = source.config
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": c.dim,
        "intermediate_size": c.hidden_dim,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.seq_len,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "rope_parameters": {"rope_theta": c.rope_theta, "rope_type": "default"},
        "tie_word_embeddings": source.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": dtype,
    }


def _config(params: JsonFile) -> Config:
    heads = params.whole("num_attention_heads")
    try:
        config = Config(
            dim=params.whole("hidden_size"),
            hidden_dim=params.whole("intermediate_size"),
            n_layers=params.whole("num_hidden_layers"),
            n_heads=heads,
            n_kv_heads=params.whole("num_key_value_heads", heads),
            vocab_size=params.whole("vocab_size"),
            seq_len=params.whole("max_position_embeddings", 2048),
            rope_theta=_rope_theta(params),
            norm_eps=params.number("rms_norm_eps", 1e-6),
        )
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{params.path}: {error}") from None
    head_dim = params.whole("head_dim", config.head_dim)
    if head_dim != config.head_dim:
        raise CheckpointError(
            f"{params.path}: head_dim={head_dim}, expected hidden_size / num_attention_heads = "
            f"{config.head_dim}: not supported yet"
        )
    return config


def _refuse_the_unknown(params: JsonFile) -> None:
    kind = params.get("model_type")
    if kind != "llama":
        raise CheckpointError(f"{params.path}: model_type={brief(kind)}, expected 'llama'")
    for name, neutral in _NEUTRAL.items():
        if (value := params.get(name)) not in neutral:
            raise CheckpointError(
                f"{params.path}: {name}={brief(value)}, expected {neutral[0]!r}: not supported yet"
            )


def _rope_theta(params: JsonFile) -> float:
    """From `rope_parameters` (transformers 5), else `rope_theta` beside `rope_scaling`."""
    theta = params.number("rope_theta", 10000.0)
    for name in ("rope_scaling", "rope_parameters"):
        rope = params.get(name)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise CheckpointError(f"{params.path}: {name}={brief(rope)}, expected an object")
        kind = rope.get("rope_type", rope.get("type"))
        if kind not in _DEFAULT_ROPE or rope.get("partial_rotary_factor", 1) != 1:
            raise CheckpointError(
                f"{params.path}: {name} {brief(kind)}: RoPE scaling is not supported yet"
            )
        theta = params.inner(name).number("rope_theta", theta)
    return theta


def _tensors(folder: Path) -> dict[str, Stored]:
    """All tensors of the folder, from the first kind of file there is."""
    for name in _WEIGHTS:
        read_one: Callable[[Path], dict[str, Stored]] = (
            safetensors.read if name.endswith(".safetensors") else _read_pytorch
        )
        if (folder / name).exists():
            return read_one(folder / name)
        if (folder / f"{name}.index.json").exists():
            return _read_shards(folder / f"{name}.index.json", read_one)
    raise CheckpointError(f"{folder}: has no {' nor '.join(_WEIGHTS)}, whole or with index.json")


def _read_pytorch(path: Path) -> dict[str, Stored]:
    return TorchFile(path).tensors()


def _read_shards(index: Path, read_one: Callable[[Path], dict[str, Stored]]) -> dict[str, Stored]:
    """The tensors that an index.json finds in several files beside it."""
    places = JsonFile(index, LARGEST_INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise CheckpointError(f"{index}: has no weight_map of tensor and file names")
    shards: dict[str, dict[str, Stored]] = {}
    tensors: dict[str, Stored] = {}
    for name, file in places.items():
        if file not in shards:
            no_name = file in ("", ".", "..") or len(file) > _LONGEST_NAME
            if no_name or any(sign in file for sign in "/\\:\0"):
                raise CheckpointError(f"{index}: names {brief(file)}, expected a file beside it")
            if not (index.parent / file).exists():
                raise CheckpointError(f"{index.parent / file}: missing, {index.name} names it")
            shards[file] = read_one(index.parent / file)
        if name not in shards[file]:
            raise CheckpointError(f"{index.parent / file}: has no {name}, {index.name} says it has")
        tensors[name] = shards[file][name]
    for shard in shards.values():  # what the index does not list is part of the network, too
        tensors = shard | tensors
    return tensors
