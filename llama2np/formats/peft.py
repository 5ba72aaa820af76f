"""LoRA adapters in the files of the package PEFT: adapter_config.json, adapter_model.safetensors.

Format: https://huggingface.co/docs/peft, "Checkpoint format". Tensors have the names of
transformers' modules after "base_model.model.".
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from llama2np.atomic import replacing_all
from llama2np.formats import safetensors
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.huggingface.families import FAMILIES, Family
from llama2np.formats.huggingface.parts import Part
from llama2np.formats.json_file import JsonFile
from llama2np.formats.source import Stored, halved, interleaved
from llama2np.model.config import Config
from llama2np.model.weights import Dense, Tensor, Weights, as_array

StrPath = str | os.PathLike[str]
_PREFIX = "base_model.model."
# What would change the computation, and its values for what we compute.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "bias": ("none", None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": ([], None),
    "megatron_config": (None,),
}


def write_adapter(
    folder: StrPath,
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]],
    alpha: float,
    config: Config,
    family: str = "llama",
    base: str = "",
) -> None:
    """Write low-rank parts, {our name of a matrix: (A, B)}, as an adapter.

    family: the model_type of the network; base: the name of the network. Raises CheckpointError for
    a matrix that transformers stores as a part of another one, and OSError.
    """
    folder, known, tensors = Path(folder), dict(FAMILIES[family].modules(config)), {}
    for name, (a, b) in pairs.items():
        theirs = known.get(name)
        if not isinstance(theirs, str):
            raise CheckpointError(
                f"{folder}: {name} is a part of a fused tensor of {family}, for which there is no "
                "adapter file: merge it instead"
            )
        start = f"{_PREFIX}{FAMILIES[family].prefix}.{theirs}"
        if _is_turned(name, config):
            b = halved(Stored.view(b), config.head_dim).read(0, len(b))
        tensors[f"{start}.lora_A.weight"] = a
        tensors[f"{start}.lora_B.weight"] = b
    rank = len(next(iter(pairs.values()))[0])
    described = _described(rank, alpha, {str(known[name]).split(".")[-1] for name in pairs}, base)
    header = safetensors.header_for({n: t.shape for n, t in tensors.items()}, np.dtype(np.float32))
    text = (json.dumps(described, indent=2) + "\n").encode()
    size = len(header) + sum(tensor.nbytes for tensor in tensors.values())
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str | os.PathLike[str], int]
    files = {folder / "adapter_model.safetensors": size, folder / "adapter_config.json": len(text)}
    with replacing_all(files) as (values, described_in):
        described_in.write(text)
        values.write(header)
        for tensor in tensors.values():
            values.write(np.ascontiguousarray(tensor, "<f4").tobytes())


def _described(rank: int, alpha: float, modules: set[str], base: str) -> dict[str, object]:
    """adapter_config.json."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(modules),
    }


def with_adapter(
    weights: Weights, config: Config, folder: StrPath, family: str = "llama"
) -> Weights:
    """Weights whose matrices have an adapter's products added; the changed ones are float32.

    Raises CheckpointError for an adapter of another network, or one that computes something else
    than LoRA, and OSError.
    """
    folder = Path(folder)
    params = JsonFile(folder / "adapter_config.json")
    for name, neutral in _NEUTRAL.items():
        if params.get(name, neutral[0]) not in neutral:
            found = params.get(name)
            raise CheckpointError(f"{params.path}: {name}={found!r}, expected {neutral[0]!r}")
    rank = params.whole("r", 8)
    scale = params.number("lora_alpha", 8) / (rank**0.5 if params.get("use_rslora") else rank)
    turned = params.get("fan_in_fan_out") is True
    deltas = _deltas(folder / "adapter_model.safetensors", scale, turned)
    changed: dict[str, Tensor] = dict(weights)
    for name, theirs in FAMILIES[family].modules(config):
        module = theirs.name if isinstance(theirs, Part) else theirs
        full = next((n for n in (_full(module, FAMILIES[family]), module) if n in deltas), None)
        if full is None or name not in weights:
            continue
        delta = _ours(deltas[full], name, theirs, config, folder)
        if delta.shape != weights[name].shape:
            raise CheckpointError(
                f"{folder}: {full} has shape {delta.shape}, {name} of the network "
                f"{weights[name].shape}: an adapter of another network?"
            )
        changed[name] = Dense(np.ascontiguousarray(as_array(weights[name]) + delta, np.float32))
    known = {theirs.name if isinstance(theirs, Part) else theirs
             for _, theirs in FAMILIES[family].modules(config)}  # fmt: skip
    known |= {_full(name, FAMILIES[family]) for name in known}
    if unknown := sorted(deltas.keys() - known):
        raise CheckpointError(f"{folder}: {unknown[0]} is not part of the network")
    return Weights(changed)


def _deltas(path: Path, scale: float, turned: bool) -> dict[str, np.ndarray]:
    """{module: s B A} of a file."""
    tensors, found = safetensors.read(path), {}
    for name, tensor in tensors.items():
        module, kind, _ = name.rpartition(".lora_A.weight")
        if not kind:
            if not name.endswith(".lora_B.weight"):
                raise CheckpointError(f"{path}: {name} is not a part of LoRA: not supported")
            continue
        other = tensors.get(f"{module}.lora_B.weight")
        if other is None or len(tensor.shape) != 2 or other.shape[1:] != tensor.shape[:1]:
            shape = None if other is None else other.shape
            raise CheckpointError(f"{path}: {module}: A {tensor.shape} and B {shape} do not fit")
        a, b = (np.asarray(t.read(0, t.shape[0]), np.float32) for t in (tensor, other))
        delta = np.float32(scale) * (b @ a)
        found[module.removeprefix(_PREFIX)] = delta.T if turned else delta
    if not found:
        raise CheckpointError(f"{path}: has no low-rank parts")
    return found


def _ours(
    delta: np.ndarray, name: str, theirs: str | Part, config: Config, folder: Path
) -> np.ndarray:
    """A change of their tensor as a change of ours."""
    if isinstance(theirs, Part):
        try:
            taken = theirs.take(Stored.view(delta), config)
        except ValueError as error:
            raise CheckpointError(f"{folder}: {theirs.name} {error}") from None
        return taken.read(0, taken.shape[0])
    if _is_turned(name, config) and not len(delta) % config.head_dim:
        return interleaved(Stored.view(delta), config.head_dim).read(0, len(delta))
    return delta


def _is_turned(name: str, config: Config) -> bool:
    """Whether the rows of this matrix have another order than in transformers."""
    return name.endswith((".wq", ".wk")) and not config.rope_halves


def _full(module: str, family: Family) -> str:
    return f"{family.prefix}.{module}"
