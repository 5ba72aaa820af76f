"""The files of sentence-transformers beside an encoder: how a text becomes one vector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llama2np.files import open_regular, read_at_most
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.json_file import LARGEST_CONFIG, JsonFile
from llama2np.formats.source import Sentences

_POOLING, _SETTINGS = "1_Pooling/config.json", "sentence_bert_config.json"
_MODULES = "modules.json"
_MODES = {  # {theirs: ours}
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_WITHOUT_WEIGHTS = ("Transformer", "Pooling", "Normalize")


def read(folder: Path) -> Sentences:
    """The settings in a folder. Raises CheckpointError, and OSError."""
    pooling, most = "mean", 0
    if (folder / _POOLING).is_file():
        modes = JsonFile(folder / _POOLING)
        chosen = [n for n in modes.fields if n.startswith("pooling_mode_") and modes.get(n) is True]
        if chosen:
            pooling = " and ".join(_MODES.get(name, name) for name in chosen)
    others = [name for name in _modules(folder) if name not in _WITHOUT_WEIGHTS]
    pooling = ", then ".join([pooling, *others])  # Dense, for one, changes the vectors
    if (folder / _SETTINGS).is_file():
        settings = JsonFile(folder / _SETTINGS)
        if (most := settings.whole("max_seq_length", 0)) == 1:
            raise CheckpointError(
                f"{settings.path}: max_seq_length=1, expected 2 or more: a text has a first and a "
                "last token"
            )
    return Sentences(pooling, most)


def _modules(folder: Path) -> list[str]:
    """The classes of the modules that a text passes through, without their packages."""
    path = folder / _MODULES
    if not path.is_file():
        return []
    with open_regular(path) as file:
        data = read_at_most(file, LARGEST_CONFIG)
    try:
        return [str(module["type"]).rpartition(".")[2] for module in json.loads(data or b"")]
    except (ValueError, RecursionError, TypeError, KeyError):
        raise CheckpointError(f"{path}: expected a list of modules, each with a type") from None


def files(sentences: Sentences, dim: int, where: str) -> dict[str, bytes]:
    """The files that say these settings: {name: content}; none for those of a plain encoder.

    Raises CheckpointError for a pooling that they cannot say.
    """
    if sentences == Sentences() or sentences.pooling in ("none", "rank"):
        return {}
    theirs = {ours: name for name, ours in _MODES.items()}
    chosen = [theirs.get(name, name) for name in sentences.pooling.split(" and ")]
    if not all(name.startswith("pooling_mode_") and " " not in name for name in chosen):
        raise CheckpointError(
            f"{where}: vectors of texts by {sentences.pooling}: only the network itself can be "
            "written, from a folder without modules.json"
        )
    modes = dict.fromkeys(list(theirs.values()), False) | dict.fromkeys(chosen, True)
    steps = [("Transformer", ""), ("Pooling", "1_Pooling")]
    package = "sentence_transformers.models"
    modules: list[dict[str, Any]] = [
        {"idx": i, "name": str(i), "path": path, "type": f"{package}.{name}"}
        for i, (name, path) in enumerate(steps)
    ]
    found: dict[str, object] = {
        _MODULES: modules,
        _POOLING: {"word_embedding_dimension": dim, **modes},
    }
    if sentences.max_tokens:
        found[_SETTINGS] = {"max_seq_length": sentences.max_tokens, "do_lower_case": False}
    return {name: (json.dumps(value, indent=2) + "\n").encode() for name, value in found.items()}
