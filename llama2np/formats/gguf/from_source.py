"""A network of any format as a GGUF file: metadata, and tensors by llama.cpp's names.

The inverse of architectures.py and tensors.py.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from llama2np.formats.checkpoint import CheckpointError, CheckpointWarning
from llama2np.formats.gguf.architectures import POOLINGS, config_of
from llama2np.formats.gguf.file import GgufTensor, is_gguf, read
from llama2np.formats.gguf.metadata import Metadata
from llama2np.formats.gguf.rope import yarn_magnitude
from llama2np.formats.gguf.tensors import EXPERTS, LAYER_NAMES, NAMES
from llama2np.formats.gguf.tokenizer_writing import tokenizer_beside, tokenizer_metadata
from llama2np.formats.gguf.types import TYPES
from llama2np.formats.gguf.write import (
    FILE_TYPES,
    NewTensor,
    Progress,
    check_type,
    packed,
    requantized,
    type_for,
    write,
)
from llama2np.formats.source import Source, Stored, interleaved
from llama2np.model import rope
from llama2np.model.config import Config
from llama2np.output import brief

_OURS_TO_THEIRS = {ours: theirs for theirs, ours in reversed(NAMES.items())}
_LAYER = {ours: theirs for theirs, ours in reversed(LAYER_NAMES.items())}
_BERT = {"attn_norm": "attn_output_norm", "ffn_norm": "layer_output_norm"}
_STACKS = {ours: theirs for theirs, ours in EXPERTS.items()}
# {architecture: {their tensor: ours, one below the other}}
_FUSED: dict[str, dict[str, tuple[str, ...]]] = {
    "gpt2": {"attn_qkv": ("wq", "wk", "wv")},
    "gptneox": {"attn_qkv": ("wq", "wk", "wv")},
    "phi3": {"attn_qkv": ("wq", "wk", "wv"), "ffn_up": ("w_gate", "w_up")},
}
Settings = dict[str, Any]


def write_gguf(
    source: Source, path: str | os.PathLike[str], kind: str, progress: Progress = int
) -> int:
    """Write a network as a GGUF file of the type `kind` ("Q4_0" ...), and return its size.

    The tokenizer that is beside the network is written, too, or left out with a CheckpointWarning.
    All metadata of a GGUF file are kept. Raises ValueError for another type, CheckpointError if
    GGUF cannot represent the network, and OSError; `path` is then unchanged.
    """
    check_type(kind)
    if not is_gguf(source.path):
        metadata, tensors = converted(source, kind)
        return write(path, metadata | _tokenizer(source), tensors, progress)
    file = read(source.path)
    metadata, tensors = requantized(file, kind)
    if source.seq_len_chosen:
        metadata[file.metadata.full(".context_length")] = packed(source.config.seq_len)
    return write(path, metadata, tensors, progress)


def _tokenizer(source: Source) -> dict[str, bytes]:
    """The metadata of the tokenizer beside a network."""
    problem = "there is none beside it"
    try:
        if tokenizer := tokenizer_beside(source.path, source.config.vocab_size):
            found = tokenizer_metadata(tokenizer, source.config.vocab_size)
            return {key: packed(value) for key, value in found.items()}
    except (ValueError, OSError) as error:
        problem = str(error)
    text = f"{source.path}: written without a tokenizer, which llama.cpp needs: {problem}"
    warnings.warn(CheckpointWarning(text), stacklevel=4)
    return {}


def converted(source: Source, kind: str) -> tuple[dict[str, bytes], list[NewTensor]]:
    """The metadata and tensors of a network, for a file of that type.

    Raises CheckpointError if GGUF has no way to describe the network.
    """
    name = _architecture(source)
    tables = _tables(source.config, name)
    stored = dict(tables)
    for ours, tensor in _tensors(source, name):
        stored[ours] = tensor
    settings = _settings(source, name)
    _check(source, settings, stored, tables)
    settings |= {"general.file_type": FILE_TYPES[kind], "general.quantization_version": 2}
    head = "output.weight" if "output.weight" in stored else "token_embd.weight"
    made = []
    for theirs, tensor in stored.items():
        its_type = type_for(theirs, tensor.shape, kind, theirs == head)
        shape = tensor.shape
        if (n := source.config.n_experts) and "_exps." in theirs:
            shape = n, shape[0] // n, shape[1]
        made.append(NewTensor(theirs, its_type, tensor, shape=shape))
    return {key: packed(value) for key, value in settings.items()}, made


def _architecture(source: Source) -> str:
    """llama.cpp's name of the architecture."""
    c, tensors = source.config, source.tensors
    if c.architecture == "gemma":
        later = "gemma3" if "layers.0.q_norm" in tensors else "gemma2"
        return later if "layers.0.post_attn_norm" in tensors else "gemma"
    if c.architecture != "llama":
        return c.architecture.replace("_", "")
    if c.rope_scaling and c.rope_scaling.kind == "longrope" and c.rope_halves:
        return "phi3"
    if "layers.0.q_norm" in tensors:
        return "qwen3"
    biased = "layers.0.wq.bias" in tensors and "layers.0.wo.bias" not in tensors
    return "qwen2" if biased and c.rope_halves else "llama"


def _settings(source: Source, name: str) -> Settings:
    """The keys of metadata that architectures.py reads."""
    c = source.config
    rms = c.architecture in ("llama", "gemma")
    found: Settings = {
        "context_length": c.seq_len,
        "embedding_length": c.dim,
        "block_count": c.n_layers,
        "feed_forward_length": c.hidden_dim,
        "vocab_size": c.vocab_size,
        "attention.head_count": c.n_heads,
        "attention.head_count_kv": c.n_kv_heads,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        f"attention.layer_norm_{'rms_' if rms else ''}epsilon": float(c.norm_eps),
    }
    if name not in ("gpt2", "bert"):
        found |= {"rope.freq_base": float(c.rope_theta), "rope.dimension_count": c.rotary_dim}
        found |= _scaling(c, name)
    optional: Settings = {
        "expert_count": c.n_experts,
        "expert_used_count": c.n_experts_used,
        "attention.sliding_window": max(c.windows, default=0),
        "attention.scale": float(c.attention_scale),
        "attn_logit_softcapping": float(c.attention_softcap),
        "final_logit_softcapping": float(c.logit_softcap),
        "rope.freq_base_swa": float(c.local_rope_theta),
    }
    found |= {key: value for key, value in optional.items() if value}
    period = next((i + 1 for i, window in enumerate(c.windows) if not window), 0)
    if name == "gemma3" and period:
        found["attention.sliding_window_pattern"] = period
    if name == "bert":
        found |= {"attention.causal": False, "pooling_type": _pooling(source)}
    if name == "gptneox":
        found["use_parallel_residual"] = bool(c.parallel_residual)
    general: Settings = {"general.architecture": name, "general.name": Path(source.path).name}
    if name == "bert":  # llama.cpp expects it
        general["tokenizer.ggml.token_type_count"] = c.n_types
    return general | {f"{name}.{key}": value for key, value in found.items()}


def _pooling(source: Source) -> int:
    """llama.cpp's number for how an encoder makes one vector of a text."""
    if (pooling := source.sentences.pooling) not in POOLINGS:
        raise CheckpointError(f"{source.path}: pooling {pooling}: GGUF has no number for it")
    return POOLINGS.index(pooling)


def _scaling(c: Config, name: str) -> Settings:
    scaling = c.rope_scaling
    if scaling is None or (name != "phi3" and scaling.kind in ("llama3", "longrope")):
        return {}
    found: Settings = {"original_context_length": scaling.original_len}
    usual = 1.0
    if scaling.kind != "longrope":
        found |= {"type": scaling.kind, "factor": float(scaling.factor)}
    if scaling.kind == "yarn":
        found["yarn_beta_fast"] = float(scaling.beta_fast)
        found["yarn_beta_slow"] = float(scaling.beta_slow)
        usual = yarn_magnitude(scaling.factor)
    if scaling.attention_factor != usual:
        found["attn_factor"] = scaling.attention_factor / usual
    return {f"rope.scaling.{key}": value for key, value in found.items()}


def _check(
    source: Source, settings: Settings, stored: dict[str, Stored], tables: dict[str, Stored]
) -> None:
    """Raise CheckpointError if a reader of these settings would compute another network."""
    c = source.config
    data = Metadata(source.path, {key: _as_read(value) for key, value in settings.items()})
    tensors = {
        name: GgufTensor(name, tensor.shape, TYPES[0], _bytes(tables.get(name)))
        for name, tensor in stored.items()
    }
    try:
        found = config_of(data, tensors)
    except ValueError as error:
        raise CheckpointError(f"{source.path}: as GGUF: {error}") from None
    same = np.allclose(rope.frequencies(c), rope.frequencies(found), rtol=1e-5, atol=0)
    if same and np.isclose(rope.magnitude(c), rope.magnitude(found), rtol=1e-6):
        found = replace(found, rope_scaling=c.rope_scaling)
    found = replace(found, rope_halves=c.rope_halves)
    for field in fields(Config):
        ours, theirs = getattr(c, field.name), getattr(found, field.name)
        alike = isinstance(ours, float) and np.float32(ours) == np.float32(theirs)
        if ours != theirs and not alike:
            raise CheckpointError(
                f"{source.path}: {field.name} is {brief(ours)}, a GGUF file of architecture "
                f"{data.architecture} cannot say it: it would be read as {brief(theirs)}"
            )


def _as_read(value: Any) -> Any:
    """The value that a reader finds: floats are float32."""
    if isinstance(value, float):
        return float(str(np.float32(value)))
    return int(value) if type(value) not in (bool, str) else value


def _bytes(table: Stored | None) -> np.ndarray:
    values = np.empty(0, "<f4") if table is None else table.read(0, table.shape[0])
    return np.ascontiguousarray(values, "<f4").view(np.uint8)


def _tables(c: Config, name: str) -> dict[str, Stored]:
    """The divisors of the frequencies, for scaling by tables: Phi-3's two, Llama 3's one."""
    scaling = c.rope_scaling
    if scaling is None or scaling.kind not in ("llama3", "longrope"):
        return {}
    if name == "phi3":
        return {
            "rope_factors_long.weight": _table(scaling.long_factors),
            "rope_factors_short.weight": _table(scaling.short_factors),
        }
    if scaling.kind == "longrope":
        return {"rope_freqs.weight": _table(scaling.long_factors)}
    plain = rope.frequencies(replace(c, rope_scaling=None))
    return {"rope_freqs.weight": _table(plain / rope.frequencies(c))}


def _table(values: Sequence[float] | np.ndarray) -> Stored:
    return Stored.view(np.array(values, np.float32))


def _tensors(source: Source, name: str) -> Iterator[tuple[str, Stored]]:
    """Yield (their name, tensor)."""
    c, left = source.config, dict(source.tensors)
    for ours, theirs in _OURS_TO_THEIRS.items():
        yield from _pair(left, ours, theirs)
    layer = _LAYER | (_BERT if name == "bert" else {})
    for i in range(c.n_layers):
        for theirs, parts in _FUSED.get(name, {}).items():
            for last in ("", ".bias"):
                names = [f"layers.{i}.{part}{last}" for part in parts]
                if names[0] in left:
                    fused = _joined([left.pop(one) for one in names])
                    yield f"blk.{i}.{theirs}{last or '.weight'}", fused
        for ours, theirs in layer.items():
            for theirs_full, tensor in _pair(left, f"layers.{i}.{ours}", f"blk.{i}.{theirs}"):
                rotary = ours in ("wq", "wk") and name == "llama" and c.rope_halves
                yield theirs_full, interleaved(tensor, c.head_dim) if rotary else tensor
        for ours, theirs in _STACKS.items():
            if not c.n_experts:
                break
            names = [f"layers.{i}.experts.{e}.{ours}" for e in range(c.n_experts)]
            yield f"blk.{i}.{theirs}.weight", _joined([left.pop(one) for one in names])
    pooler = left.keys() & {"pooler", "pooler.bias"} if name == "bert" else set()
    if others := left.keys() - pooler:
        raise CheckpointError(
            f"{source.path}: has {min(others)}, which a GGUF file of architecture {name} cannot "
            "hold"
        )
    if pooler:
        text = f"{source.path}: written without its pooler, which GGUF cannot hold: embed does not"
        warnings.warn(CheckpointWarning(f"{text} use it, classify does"), stacklevel=5)


def _pair(left: dict[str, Stored], ours: str, theirs: str) -> Iterator[tuple[str, Stored]]:
    """Yield a matrix or norm, and its bias, as far as they are in `left`, and remove them."""
    for last, name in (("", ".weight"), (".bias", ".bias")):
        if ours + last in left:
            yield theirs + name, left.pop(ours + last)


def _joined(parts: Sequence[Stored]) -> Stored:
    """One tensor of several, one below the other."""
    ends = np.cumsum([0, *(part.shape[0] for part in parts)]).tolist()

    def rows(start: int, end: int) -> np.ndarray:
        found = [
            part.read(max(start - first, 0), min(end - first, part.shape[0]))
            for part, first in zip(parts, ends, strict=False)
            if start - first < part.shape[0] and end > first
        ]
        return np.concatenate([np.asarray(block, np.float32) for block in found])

    size = sum(part.nbytes for part in parts)
    return Stored((ends[-1], *parts[0].shape[1:]), parts[0].dtype, size, rows)
