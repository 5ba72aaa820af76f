"""Names of tensors without the prefixes that trainers and wrappers add."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from llama2np.formats.checkpoint import CheckpointError

T = TypeVar("T")

# A module around the network adds a part to each name: DistributedDataParallel and DataParallel,
# torch.compile, FSDP, activation checkpointing. Parts of a network may be wrapped, too.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_MAX_OUTER = 8  # parts outside that list, which all names begin with
_NETWORK = "model"  # Hugging Face's name for all but the head; many trainers use it for everything


def bare(name: str, network: str = _NETWORK) -> str:
    """A name without the prefixes of wrappers, without "model." and without `network`."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    first = 0
    while first < len(parts) - 1 and parts[first] in (_NETWORK, network):
        first += 1
    return ".".join(parts[first:])


def bare_names(names: Iterable[str], network: str = _NETWORK) -> dict[str, str]:
    """{name: its bare name}, also without a first part that all names have in common.

    Such a part is a wrapper's outside the list above, as in "base_model.model.lm_head.weight"
    of PEFT, or in "student.model.norm.weight".
    """
    found = {name: bare(name, network) for name in names}
    for _ in range(_MAX_OUTER):
        if len({plain.partition(".")[0] for plain in found.values()}) != 1:
            break
        if any(plain.count(".") < 2 or plain.split(".")[1].isdigit() for plain in found.values()):
            break  # "lm_head.weight", "layers.0 ...": a part of a network, not a wrapper
        found = {name: bare(plain.partition(".")[2], network) for name, plain in found.items()}
    return found


def unwrapped(tensors: Mapping[str, T], where: str, network: str = _NETWORK) -> dict[str, T]:
    """The tensors by their bare names. Raises CheckpointError if two have the same."""
    found: dict[str, T] = {}
    first: dict[str, str] = {}
    for name, plain in bare_names(tensors, network).items():
        if plain in found:
            raise CheckpointError(
                f"{where}: {name} and {first[plain]} are the same tensor: expected one of them"
            )
        found[plain], first[plain] = tensors[name], name
    return found
