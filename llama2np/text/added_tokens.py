"""Tokens added by fine-tuning, from the files that Hugging Face puts beside tokenizer.model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llama2np.formats import kinds
from llama2np.output import brief

_LARGEST = 2**23  # bytes in a file


def read(folder: Path) -> dict[int, bytes]:
    """Return {token: text} of the added tokens in added_tokens.json and tokenizer_config.json.

    It is empty if these files do not exist. Raises ValueError for other contents, and OSError.
    """
    added: dict[int, bytes] = {}
    for name, find in (("added_tokens.json", _plain), ("tokenizer_config.json", _decoder)):
        path = folder / name
        if not path.is_file():  # a pipe is skipped too: opening it would wait for a writer
            continue
        for token, text in find(path, _object(path)):
            if not _legal(token, text):
                raise ValueError(
                    f"{path}: token {brief(token)} is {brief(text)}, expected an id and a text"
                )
            added[token] = text.encode()
    return added


def _legal(token: Any, text: Any) -> bool:
    if not isinstance(token, int) or isinstance(token, bool) or not isinstance(text, str):
        return False
    # JSON can have surrogates, which UTF-8 cannot encode
    return token >= 0 and not any("\ud800" <= c < "\ue000" for c in text)


def _plain(_path: Path, fields: dict[str, Any]) -> list[tuple[Any, Any]]:
    """{"<pad>": 32000}"""
    return [(token, text) for text, token in fields.items()]


def _decoder(path: Path, fields: dict[str, Any]) -> list[tuple[Any, Any]]:
    """{"added_tokens_decoder": {"32000": {"content": "<pad>", ...}}}"""
    decoder = fields.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise ValueError(f"{path}: added_tokens_decoder={brief(decoder)}, expected an object")
    return [
        (int(token) if token.isdecimal() and len(token) < 10 else token, _content(entry))
        for token, entry in decoder.items()
    ]


def _content(entry: Any) -> Any:
    return entry.get("content") if isinstance(entry, dict) else entry


def _object(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError(f"{path}: has more than {_LARGEST:,} bytes")
    with kinds.named(path, "json", ValueError):
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
