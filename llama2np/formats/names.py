"""What tensors are called, without what trainers and wrappers put around their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from llama2np.formats.checkpoint import CheckpointError

T = TypeVar("T")

# A module that holds the network gives each name a part: DistributedDataParallel and DataParallel,
# torch.compile, FSDP, activation checkpointing. Parts of a network may be wrapped, too.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_NETWORK = "model"  # Hugging Face's name of what is below the head, and many a trainer's of it all


def bare(name: str) -> str:
    """A name without wrappers and without "model." before it."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while len(parts) > 1 and parts[0] == _NETWORK:
        del parts[0]
    return ".".join(parts)


def unwrapped(tensors: Mapping[str, T], where: str) -> dict[str, T]:
    """The tensors by their bare names. Raises CheckpointError where two have the same."""
    found: dict[str, T] = {}
    first: dict[str, str] = {}
    for name, tensor in tensors.items():
        plain = bare(name)
        if plain in found:
            raise CheckpointError(f"{where}: {name} is a second {first[plain]}: which one to take?")
        found[plain], first[plain] = tensor, name
    return found
