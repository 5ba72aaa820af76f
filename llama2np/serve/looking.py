"""/look: what the page shows of the network's inside. Arrays are for a text of tokens, as JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from starlette.responses import JSONResponse
from starlette.types import Receive

from llama2np.analysis import interactive
from llama2np.llama import Llama
from llama2np.model.hooks import Edit, Place
from llama2np.serve import logprobs, options
from llama2np.serve.errors import ApiError
from llama2np.serve.fields import Fields
from llama2np.serve.service import Service

MOST_TOKENS = 256  # of a text whose inside is shown: a map of attention has their square
_LENS_COLUMNS = 48


async def lens(service: Service, fields: Fields, receive: Receive) -> Any:
    """The logit lens: for each place and token the most probable next tokens."""
    model, tokens = service.llama, _tokens(service, fields)

    def work(_: Callable[[], bool]) -> dict[str, Any]:
        return interactive.lens(model, tokens, _LENS_COLUMNS)

    return JSONResponse(await service.aside.run(receive, work))


async def attention(service: Service, fields: Fields, receive: Receive) -> Any:
    """The attention weights of a head: a row for each token, a column for each position."""
    model, tokens = service.llama, _tokens(service, fields)
    chosen = _head(model, fields)

    def work(_: Callable[[], bool]) -> dict[str, Any]:
        found = interactive.attention(model, tokens, [chosen])
        (one,) = found.pop("maps")
        return {**found, **one}

    return JSONResponse(await service.aside.run(receive, work))


async def generate(service: Service, fields: Fields, receive: Receive) -> Any:
    """A text after `tokens`, with some heads switched off: its tokens, and the alternatives."""
    model, tokens = service.llama, _tokens(service, fields, model_limit=True)
    common = options.common(fields, 64) | {"logprobs": 10}
    common["max_new_tokens"] = min(common["max_new_tokens"], MOST_TOKENS)
    if len(choices := options.choices(fields, common)) != 1:
        raise fields.wrong("n", "1")
    (asked,) = choices
    off = fields.get("off", [])
    if not isinstance(off, list) or len(off) > model.config.n_layers * model.config.n_heads:
        raise fields.wrong("off", "a list of heads, [layer, head]")
    if not all(isinstance(one, list) and len(one) == 2 for one in off):
        raise fields.wrong("off", "a list of heads, [layer, head]")
    heads = [_head(model, Fields({"layer": one[0], "head": one[1]})) for one in off]

    def work(stopped: Callable[[], bool]) -> dict[str, Any]:
        edited = _without(model, heads)
        found: list[dict[str, Any]] = []
        try:
            text = edited.generate(tokens, **asked)
        except ValueError as error:
            raise ApiError(400, str(error)) from None
        for piece in text:
            if stopped():
                break
            if len(text.tokens) > len(found):
                found.append(_told(model, text.tokens[-1], piece, text.top_logprobs[-1]))
        return {"text": text.text, "tokens": found, "stop_reason": text.stop_reason}

    return JSONResponse(await service.aside.run(receive, work))


def facts(service: Service) -> dict[str, Any]:
    """What the page says about the model, and needs to know."""
    model, c = service.llama, service.llama.config
    try:
        model.request({"messages": [{"role": "user", "content": "a"}]}, {})
        chats = True
    except ValueError:
        chats = False
    weights = model.transformer.weights
    kinds = sorted({getattr(each, "kind", "float32") for each in weights.values()})
    shape = {"layers": c.n_layers, "heads": c.n_heads, "kv_heads": c.n_kv_heads, "dim": c.dim}
    return {
        "name": service.name,
        "architecture": c.architecture,
        **shape,
        "context": c.seq_len,
        "vocabulary": c.vocab_size,
        "bytes": weights.nbytes,
        "formats": kinds,
        "multiply_adds": model.transformer.program.work,
        "chats": chats and model.tokenizer.chat_template is not None,
    }


def _told(model: Llama, token: int, piece: str, top: dict[int, float]) -> dict[str, Any]:
    """A token of a text, and the most probable ones in its place."""

    def named(token: int) -> str:
        return logprobs.piece_of(model.tokenizer, token).decode(errors="replace")

    best = [{"token": named(each), "logprob": max(p, -9999.0)} for each, p in top.items()]
    return {"id": token, "token": named(token), "piece": piece, "top_logprobs": best}


def _without(model: Llama, heads: list[tuple[int, int]]) -> Llama:
    """The model with these heads, (layer, head), switched off: their output is 0."""

    def change(mixed: np.ndarray, place: Place) -> None:
        mixed[:, [head for layer, head in heads if layer == place.layer]] = 0

    layers = sorted({layer for layer, _ in heads})
    return model.with_hooks(Edit("mixed", change, layers=layers)) if heads else model


def _tokens(service: Service, fields: Fields, model_limit: bool = False) -> list[int]:
    """The field `tokens`. Raises ApiError for tokens that the model does not have."""
    value, most = fields.get("tokens", []), MOST_TOKENS
    config = service.llama.config
    if config.outputs_here:  # hooks need all of a network
        raise ApiError(400, "several processes share out this model: the page cannot look inside")
    if model_limit:
        most = config.seq_len
    most = min(most, config.seq_len)
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        raise ApiError(400, f"tokens must be a list of 1 to {most} tokens", "tokens")
    for token in value:
        if type(token) is not int or not 0 <= token < config.vocab_size:
            raise ApiError(400, f"tokens must be 0 to {config.vocab_size - 1}", "tokens")
    return value


def _head(model: Llama, fields: Fields) -> tuple[int, int]:
    """The fields `layer` and `head`. Raises ApiError."""
    c = model.config
    layer = fields.whole("layer", 0, 0, c.n_layers - 1)
    return layer, fields.whole("head", 0, 0, c.n_heads - 1)
