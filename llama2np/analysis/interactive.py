"""Interactive pictures: the logit lens and attention maps, as data and as HTML files.

The script that draws, web/pictures.js, is the same in these files and in the server's page.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from llama2np.analysis.lens import labels, pieces_of, spans
from llama2np.atomic import replacing
from llama2np.decoding.logits import top_tokens
from llama2np.llama import Llama
from llama2np.model.hooks import Trace

SUFFIXES = (".html", ".htm")
MAX_WEIGHTS = 4_000_000  # of the maps in a file: about 30 MB
_BEST = 5  # tokens for each cell of a lens
_ABOUT_LENS = (
    "After each block: the most probable next token, if the network ended there. A stronger colour "
    "is more probable. Point at a cell for the next ones."
)
_ABOUT_MAPS = (
    "A row for each token: how much it takes from each token up to itself. A stronger colour is "
    "more. Point at the map for the numbers."
)


def lens(model: Llama, tokens: Sequence[int], columns: int | None = None) -> dict[str, Any]:
    """The logit lens of the last `columns` tokens, as `lensTable` of pictures.js takes it.

    rows: for the embedding and each block, the most probable tokens after each token, with their
    probabilities. Raises ValueError as `Llama.forward` does.
    """
    first = max(len(tokens) - (columns or len(tokens)), 0)
    trace = Trace("embedding", "resid_post", positions=range(first, len(tokens)))
    model.with_hooks(trace).forward(tokens, model.new_state())
    rows = []
    for x in (trace["embedding"], *trace["resid_post"]):
        logits = model.transformer.unembed(x)
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        rows.append([_best(model, row) for row in shares])
    names = ["embedding", *(f"block {i}" for i in range(model.config.n_layers))]
    return {"first": first, "names": names, "rows": rows, **_tokens(model, tokens[first:])}


def attention(
    model: Llama, tokens: Sequence[int], heads: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """The attention maps of `heads`, (layer, head), as `AttentionMap` of pictures.js takes them.

    The weights of a map are rows of 1, 2, ... numbers: no token looks at a later one. Raises
    ValueError as `Llama.forward` does.
    """
    trace = Trace("attention", layers=sorted({layer for layer, _ in heads}))
    model.with_hooks(trace).forward(tokens, model.new_state())
    maps = []
    for layer, head in heads:
        weights = np.round(trace["attention", layer][head].astype(float), 4)
        rows = [row[: i + 1].tolist() for i, row in enumerate(weights)]
        maps.append({"title": f"layer {layer}, head {head}", "weights": rows})
    return {"maps": maps, **_tokens(model, tokens)}


def save_lens(path: str | os.PathLike[str], model: Llama, tokens: Sequence[int]) -> None:
    """Write the logit lens as one HTML file. Raises ValueError and OSError."""
    _save(path, "Logit lens", _ABOUT_LENS, model, tokens, lens(model, tokens))


def save_attention(
    path: str | os.PathLike[str],
    model: Llama,
    tokens: Sequence[int],
    heads: Sequence[tuple[int, int]],
    columns: int = 4,
) -> None:
    """Write attention maps as one HTML file, `columns` small maps side by side.

    Raises ValueError, also for more than MAX_WEIGHTS numbers, and OSError.
    """
    count = len(heads) * len(tokens) * (len(tokens) + 1) // 2
    if count > MAX_WEIGHTS:
        raise ValueError(
            f"{path}: {len(heads)} maps of {len(tokens):,} tokens have {count:,} weights, a file "
            f"has at most {MAX_WEIGHTS:,}: choose fewer heads, or a shorter text"
        )
    data = attention(model, tokens, heads) | {"columns": columns}
    _save(path, "Attention", _ABOUT_MAPS, model, tokens, data)


def page(template: str, parts: Mapping[str, str]) -> str:
    """A page from its template: {{name}} becomes a part, or a file of web/."""

    def filled(match: re.Match[str]) -> str:
        name = match[1]
        if name in parts:
            return parts[name]
        return files("llama2np.analysis").joinpath("web", name).read_text("utf-8")

    return re.sub(r"\{\{([\w.]+)\}\}", filled, template)


def script_hash(text: str) -> str:
    """The source for a Content-Security-Policy that lets the last script of a page run."""
    script = text.rpartition("<script>")[2].partition("</script>")[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _save(
    path: str | os.PathLike[str],
    title: str,
    about: str,
    model: Llama,
    tokens: Sequence[int],
    data: dict[str, Any],
) -> None:
    text = model.tokenizer.decode(tokens, True) if model.tokenizer is not None else ""
    # "<" could end the script element that holds the data.
    numbers = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = {"title": title, "about": about, "text": html.escape(text), "data": numbers}
    template = page("{{picture.html}}", {})
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src "
    parts["policy"] = policy + script_hash(page(template, parts | {"policy": ""}))
    with replacing(Path(path)) as file:
        file.write(page(template, parts).encode(errors="replace"))


def _tokens(model: Llama, tokens: Sequence[int]) -> dict[str, Any]:
    """The tokens that are read: a label for each, and those that are characters together."""
    found = spans(model.tokenizer, tokens)
    return {"pieces": pieces_of(found), "spans": found}


def _best(model: Llama, shares: np.ndarray) -> list[tuple[str, float]]:
    """The most probable tokens of a row, with their probabilities."""
    best = top_tokens(shares, _BEST)
    return [
        (piece, round(float(shares[token]), 4))
        for token, piece in zip(best, labels(model.tokenizer, best), strict=True)
    ]
