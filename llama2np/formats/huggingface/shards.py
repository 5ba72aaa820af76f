"""The tensors of a folder, by the names in its files: safetensors or pytorch_model.bin, sharded or
whole.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

from llama2np.formats import safetensors
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.json_file import LARGEST_INDEX, JsonFile
from llama2np.formats.source import Stored
from llama2np.formats.torch_zip import TorchFile
from llama2np.output import brief

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_NOT_READ = "this cannot be read yet: get the model's safetensors files"
# Patterns of weights in other forms: what to do with them.
_OTHERS = {
    "*.incomplete": "a download that has not ended: download it again",
    "adapter_model.*": "an adapter (LoRA): merge it into its model first",
    "zero_to_fp32.py": "DeepSpeed's script, which collects the weights: run it first",
    "consolidated*.safetensors": f"Mistral's own format; {_NOT_READ}",
    "*.safetensors": "rename it to model.safetensors if it has the whole model",
    "*.gguf": "name this file itself",
    "flax_model*.msgpack": _NOT_READ,
    "tf_model*.h5": _NOT_READ,
    "*.onnx": _NOT_READ,
    "onnx/*.onnx": _NOT_READ,
    "openvino_model.*": _NOT_READ,
    "saved_model.pb": _NOT_READ,
    "*.distcp": "torch's distributed checkpoint: convert it with torch, to one file, first",
    "pytorch_model_fsdp*": "a shard of torch's FSDP: convert it with torch, to one file, first",
    "*.pt": _NOT_READ,
    "*.pth": _NOT_READ,
    "*.bin": _NOT_READ,
}
# Files of other kinds that match these patterns.
_NO_WEIGHTS = {
    *("tokenizer.bin", "training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt"),
    *("scheduler.bin", "scaler.pt"),
}
_LONGEST_NAME = 200  # of a shard


def tensors_of(folder: Path) -> dict[str, Stored]:
    """All tensors of the folder, from the first kind of file there is. Raises CheckpointError."""
    for name in _WEIGHTS:
        read_one: Callable[[Path], dict[str, Stored]] = (
            safetensors.read if name.endswith(".safetensors") else _read_pytorch
        )
        if (folder / name).exists():
            return read_one(folder / name)
        if (folder / f"{name}.index.json").exists():
            return _read_shards(folder / f"{name}.index.json", read_one)
        if any(folder.glob(f"{Path(name).stem}-*-of-*{Path(name).suffix}")):
            raise CheckpointError(
                f"{folder}: has a shard of the weights, but no {name}.index.json, which says what "
                "is in each: fetch that file, too"
            )
    expected = f"has no {' nor '.join(_WEIGHTS)}, whole or with index.json"
    raise CheckpointError(f"{folder}: {expected}{_instead(folder)}")


def _instead(folder: Path) -> str:
    """What to do with other weights in the folder, after ", but "; "" if there are none."""
    for pattern, way in _OTHERS.items():
        found = (path for path in sorted(folder.glob(pattern)) if path.name not in _NO_WEIGHTS)
        for path in islice(found, 1):
            return f", but {path.relative_to(folder)}: {way}"
    return ""


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
    for shard in shards.values():  # tensors that the index does not list belong to the network, too
        tensors = shard | tensors
    return tensors
