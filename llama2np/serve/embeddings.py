"""/v1/embeddings: vectors of texts, by an encoder."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
from starlette.responses import JSONResponse
from starlette.types import Receive

from llama2np.serve.errors import ApiError
from llama2np.serve.fields import Fields
from llama2np.serve.service import Service

_MOST_TEXTS = 2048  # OpenAI's


async def embeddings(service: Service, fields: Fields, receive: Receive) -> Any:
    """Answer a request. Raises ApiError, and Gone."""
    service.check_model(fields)
    encoder = service.encoder
    texts = fields.texts("input", _MOST_TEXTS)
    if not texts:
        raise fields.wrong("input", "a text or a list of texts")
    form = fields.text("encoding_format", "float")
    if form not in ("float", "base64"):
        raise fields.wrong("encoding_format", "float or base64")
    if fields.get("dimensions", encoder.config.dim) != encoder.config.dim:
        raise ApiError(400, f"dimensions must be {encoder.config.dim}, the model's", "dimensions")

    def work(_: Callable[[], bool]) -> tuple[np.ndarray, int]:
        count = sum(len(encoder.tokenizer.encode(text)) for text in texts)
        return encoder.embed(texts), count

    try:
        vectors, count = await service.aside.run(receive, work)
    except ValueError as error:
        raise ApiError(400, str(error), "input") from None
    rows = [
        base64.b64encode(row.astype("<f4").tobytes()).decode() if form == "base64" else row.tolist()
        for row in vectors
    ]
    data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
    spent = {"prompt_tokens": count, "total_tokens": count}
    return JSONResponse({"object": "list", "data": data, "model": service.name, "usage": spent})
