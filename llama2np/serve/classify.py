"""/v1/classify: the probabilities of labels for texts, in the form of vLLM's and SGLang's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive

from llama2np.serve.errors import ApiError
from llama2np.serve.fields import Fields
from llama2np.serve.service import Service

_MOST_TEXTS = 2048  # as for embeddings


async def classify(service: Service, fields: Fields, receive: Receive) -> Any:
    """Answer a request. Raises ApiError, and Gone.

    A text that is longer than the context is cut off there, as by the library.
    """
    service.check_model(fields)
    model = service.classifier
    texts = fields.texts("input", _MOST_TEXTS)
    if not texts or not all(texts):
        raise fields.wrong("input", "a text or a list of texts, none of them empty")

    def work(gone: Callable[[], bool]) -> tuple[list[dict[str, float]], int]:
        count, longest = 0, model.config.seq_len
        found: list[dict[str, float]] = []
        for text in texts:
            if gone():
                break
            count += min(len(model.tokenizer.encode(text)), longest)
            found += model.classify([text])
        return found, count

    try:
        found, count = await service.aside.run(receive, work)
    except ValueError as error:
        raise ApiError(400, str(error), "input") from None
    data = [
        {
            "index": i,
            "label": max(shares, key=shares.__getitem__),
            "probs": list(shares.values()),
            "num_classes": len(shares),
        }
        for i, shares in enumerate(found)
    ]
    spent = {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0}
    return JSONResponse(service.head("list", "classify") | {"data": data, "usage": spent})
