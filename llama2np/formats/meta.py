"""Meta's Llama folders: params.json, and consolidated.00.pth, consolidated.01.pth ...

Each file holds a slice of every matrix, for one GPU of tensor parallelism: some of its rows, or of
its columns. They are joined as in llama2.c's export.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama2np.formats import kinds
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.json_file import JsonFile
from llama2np.formats.names import unwrapped
from llama2np.formats.source import Source, Stored, checked, concatenated
from llama2np.formats.torch_zip import TorchFile
from llama2np.model.config import Config
from llama2np.output import brief

_SHARDS = "consolidated.*.pth"
SEQ_LEN = 2048  # llama2.c's choice, since params.json does not have it

_NAMES = {
    "tok_embeddings": "embedding",
    "norm": "final_norm",
    "output": "classifier",
    "attention_norm": "attn_norm",
    "attention.wq": "wq",
    "attention.wk": "wk",
    "attention.wv": "wv",
    "attention.wo": "wo",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "w_gate",
    "feed_forward.w3": "w_up",
    "feed_forward.w2": "w_down",
}
_NAME = re.compile(r"(?:layers\.(?P<layer>0|[1-9]\d{0,8})\.)?(?P<name>[a-z_.0-9]+?)\.weight")
# Tables that follow from the config; llama2.c's network saves a mask where torch is older than 2.
_IGNORED = re.compile(r"rope\.freqs|freqs_(cis|cos|sin)|layers\.\d+\.attention\.mask")
_SIDE_BY_SIDE = ("embedding", ".wo", ".w_down")  # these are sliced by columns
_REFUSED = {
    "use_scaled_rope": "RoPE scaling",
    "moe": "mixture of experts",
    "vision_chunk_size": "vision",
}


@kinds.reader("meta", CheckpointError)
def read(folder: str | os.PathLike[str]) -> Source:
    """Open a Llama in Meta's format. Raises CheckpointError, and OSError."""
    folder = Path(folder)
    params = JsonFile(folder / "params.json")
    for name, what in _REFUSED.items():
        if value := params.get(name):
            raise CheckpointError(
                f"{params.path}: {name}={brief(value)}: {what} is not supported yet"
            )
    dim = params.whole("dim")
    shards = [unwrapped(TorchFile(path).tensors(), str(path)) for path in _shards(folder)]
    tensors = _joined(shards, dim, folder)
    tensors = our_names(tensors)
    heads = params.whole("n_heads")
    config = config_of(
        params.path,
        tensors,
        dim=dim,
        n_layers=params.whole("n_layers"),
        n_heads=heads,
        n_kv_heads=params.whole("n_kv_heads", heads),
        seq_len=SEQ_LEN,
        rope_theta=params.number("rope_theta", 10000.0),
        norm_eps=params.number("norm_eps", 1e-5),
    )
    return checked(str(folder), config, tensors)


def has_weights(folder: Path) -> bool:
    """Whether a folder has weights in Meta's form."""
    return any(folder.glob(_SHARDS))


def our_names(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors by our names, if we have one. llama2.c's train.py uses Meta's names, too."""
    named = {}
    for name, tensor in tensors.items():
        if _IGNORED.fullmatch(name):
            continue
        match = _NAME.fullmatch(name)
        ours = _NAMES.get(match["name"], name) if match else name
        if match and match["layer"]:
            ours = f"layers.{match['layer']}.{ours}"
        if ours in named:
            raise CheckpointError(f"{name} is a second tensor for {ours}")
        named[ours] = tensor
    return named


def config_of(path: str, tensors: Mapping[str, Stored], **numbers: float) -> Config:
    """A Config of `numbers`, and of hidden_dim and vocab_size from the shapes of the tensors.

    Raises CheckpointError.
    """
    fields: dict[str, Any] = dict(numbers)
    for field, name in (("hidden_dim", "layers.0.w_gate"), ("vocab_size", "embedding")):
        if name not in tensors or len(tensors[name].shape) != 2:
            raise CheckpointError(f"{path}: the files beside it have no matrix for {name}")
        fields[field] = tensors[name].shape[0]
    try:
        return Config(**fields)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _shards(folder: Path) -> list[Path]:
    paths = sorted(folder.glob(_SHARDS))
    if not paths:
        hint = ""
        if (folder / "consolidated.safetensors").exists():
            hint = (
                ", but Mistral's consolidated.safetensors, which cannot be read: get the model in "
                "Hugging Face's form, with config.json and model.safetensors"
            )
        raise CheckpointError(f"{folder}: has no consolidated.00.pth{hint}")
    for i, path in enumerate(paths):
        expected = f"consolidated.{i:02d}.pth"
        if path.name != expected:
            raise CheckpointError(f"{folder / expected}: missing, found {paths[-1].name}")
    return paths


def _joined(shards: list[dict[str, Stored]], dim: int, folder: Path) -> dict[str, Stored]:
    tensors = {}
    for name, first in shards[0].items():
        for i, shard in enumerate(shards):
            if name not in shard:
                raise CheckpointError(f"{folder}/consolidated.{i:02d}.pth: has no {name}")
        if len(shards) == 1 or len(first.shape) != 2:
            tensors[name] = first  # each file has the whole vector
            continue
        try:
            tensors[name] = concatenated([shard[name] for shard in shards], _axis(name, first, dim))
        except ValueError as error:
            raise CheckpointError(f"{folder}: {name}: {error}") from None
    return tensors


def _axis(name: str, first: Stored, dim: int) -> int:
    (ours,) = our_names({name: first}) or (name,)
    if ours == "embedding" and first.shape[1] == dim:
        return 0  # Llama 3 slices the embedding by rows
    return int(ours.endswith(_SIDE_BY_SIDE))
