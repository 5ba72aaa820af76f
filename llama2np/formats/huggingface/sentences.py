"""The files of sentence-transformers beside an encoder: how a text becomes one vector."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.json_file import JsonFile

_POOLING = "1_Pooling/config.json"
_MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


@dataclass(frozen=True, slots=True)
class Sentences:
    """The settings of a folder; "mean" and 0 where there are none."""

    pooling: str = "mean"  # "mean", "cls", or the name of a mode that we do not have
    max_tokens: int = 0  # longer texts are cut off; 0 means at the network's longest


def read(folder: Path) -> Sentences:
    """The settings in a folder. Raises CheckpointError, and OSError."""
    pooling, most = "mean", 0
    if (folder / _POOLING).is_file():
        modes = JsonFile(folder / _POOLING)
        chosen = [n for n in modes.fields if n.startswith("pooling_mode_") and modes.get(n) is True]
        if chosen:
            pooling = " and ".join(_MODES.get(name, name) for name in chosen)
    if (folder / "sentence_bert_config.json").is_file():
        settings = JsonFile(folder / "sentence_bert_config.json")
        if (most := settings.whole("max_seq_length", 0)) == 1:
            raise CheckpointError(
                f"{settings.path}: max_seq_length=1, expected 2 or more: a text has a first and a "
                "last token"
            )
    return Sentences(pooling, most)
