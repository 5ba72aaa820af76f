"""Names of tensors without the prefixes that trainers and wrappers add."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from llama2np.formats.checkpoint import CheckpointError

T = TypeVar("T")

# A module around the network adds a part to each name: DistributedDataParallel and DataParallel,
# torch.compile, FSDP, activation checkpointing. Parts of a network may be wrapped, too.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_NETWORK = "model"  # Hugging Face's name for all but the head; many trainers use it for everything


def bare(name: str, network: str = _NETWORK) -> str:
    """A name without the prefixes of wrappers, without "model." and without `network`."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while len(parts) > 1 and parts[0] in (_NETWORK, network):
        del parts[0]
    return ".".join(parts)


def unwrapped(tensors: Mapping[str, T], where: str, network: str = _NETWORK) -> dict[str, T]:
    """The tensors by their bare names. Raises CheckpointError if two have the same."""
    found: dict[str, T] = {}
    first: dict[str, str] = {}
    for name, tensor in tensors.items():
        plain = bare(name, network)
        if plain in found:
            raise CheckpointError(
                f"{where}: {name} and {first[plain]} are the same tensor: expected one of them"
            )
        found[plain], first[plain] = tensor, name
    return found
