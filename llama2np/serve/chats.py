"""/v1/chat/completions: answers in a conversation."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive

from llama2np.decoding.completion import Completion
from llama2np.decoding.options import Request
from llama2np.serve import logprobs, options
from llama2np.serve.constrained import processors
from llama2np.serve.errors import ApiError
from llama2np.serve.events import Events
from llama2np.serve.fields import Fields
from llama2np.serve.generating import Started, unless_gone
from llama2np.serve.service import Service, finish_reason, usage

_UNSUPPORTED = "tools", "functions", "function_call", "audio", "prediction", "web_search_options"
_ROLES = {"developer": "system"}  # OpenAI's newer name
_MOST_MESSAGES = 10_000


@dataclass
class _Asked:
    requests: list[Request]
    logprobs: bool
    with_usage: bool
    ids: bool  # vLLM's return_token_ids


async def chats(service: Service, fields: Fields, receive: Receive) -> Any:
    """Answer a request. Raises ApiError, and Gone."""
    service.check_model(fields)
    asked = await service.prepared(_asked, service, fields)  # a grammar may take a while
    if fields.flag("stream"):
        started = service.generator.start(asked.requests)
        return Events(_streamed(service, asked, started), started)
    done = await unless_gone(receive, service.generator.finish(asked.requests))
    body, tokenizer = service.head("chat.completion", "chatcmpl"), service.llama.tokenizer
    body["choices"] = []
    for i, each in enumerate(done):
        message = {"role": "assistant", "content": each.text, "refusal": None}
        choice = {"index": i, "message": message, "logprobs": None}
        if asked.logprobs:
            last = logprobs.shown(each, len(each.tokens))
            choice["logprobs"] = logprobs.for_chat(tokenizer, each, 0, last)
        if asked.ids:
            choice["token_ids"] = each.tokens
            body["prompt_token_ids"] = each.prompt
        body["choices"].append(choice | {"finish_reason": finish_reason(each)})
    return JSONResponse(body | {"usage": usage(done, [asked.requests[0].prompt])})


async def _streamed(
    service: Service, asked: _Asked, started: Started
) -> AsyncGenerator[dict[str, Any], None]:
    head, tokenizer = service.head("chat.completion.chunk", "chatcmpl"), service.llama.tokenizer
    seen, done = [0] * len(asked.requests), list[Completion]()
    async with aclosing(started) as news:
        for i, request in enumerate(asked.requests):
            first = head | {"choices": [_part(i, {"role": "assistant", "content": ""})]}
            yield first | ({"prompt_token_ids": request.prompt} if asked.ids else {})
        async for each in news:
            choice = _part(each.index, {"content": each.piece} if each.piece else {})
            if asked.logprobs:
                last = logprobs.shown(each.completion, each.count)
                found = logprobs.for_chat(tokenizer, each.completion, seen[each.index], last)
                choice["logprobs"] = found if found["content"] else None
            if asked.ids:
                choice["token_ids"] = each.completion.tokens[seen[each.index] : each.count]
            seen[each.index] = each.count
            if each.piece or choice["logprobs"]:
                yield head | {"choices": [choice]}
            if each.done:
                done.append(each.completion)
                last_part = _part(each.index, {}, finish_reason(each.completion))
                yield head | {"choices": [last_part]}
    if asked.with_usage:
        yield head | {"choices": [], "usage": usage(done, [asked.requests[0].prompt])}


def _part(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


def _asked(service: Service, fields: Fields) -> _Asked:
    options.refuse(fields, *_UNSUPPORTED)
    if fields.get("max_completion_tokens") is not None:
        fields.values["max_tokens"] = fields.get("max_completion_tokens")
    common, wanted = options.common(fields, None), fields.flag("logprobs")
    top = fields.whole("top_logprobs", None, 0, options.MOST_LOGPROBS)
    if top is not None and not wanted:
        raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
    common["logprobs"] = (top or 0) if wanted else None
    messages, choices = _messages(fields), options.choices(fields, common)
    service.generator.check_count(len(choices))
    service.check_size((message["content"] for message in messages), "messages")
    constraints = processors(service.llama.tokenizer, fields, len(choices))
    try:
        made = service.llama.requests({"messages": messages}, choices)
    except ValueError as error:
        code = "context_length_exceeded" if "the context holds" in str(error) else None
        raise ApiError(400, str(error), "messages", code) from None
    for request, processor in zip(made, constraints, strict=True):
        if processor is not None:
            processor.ends = request.ends or service.llama.tokenizer.ends
            request.sampler.logits_processor = processor
    with_usage = Fields(fields.get("stream_options", {}), " for stream_options").flag(
        "include_usage"
    )
    return _Asked(made, wanted, with_usage, fields.flag("return_token_ids"))


def _messages(fields: Fields) -> list[dict[str, str]]:
    """The conversation, with texts as contents."""
    value = fields.get("messages")
    if not isinstance(value, list) or not 1 <= len(value) <= _MOST_MESSAGES:
        raise fields.wrong("messages", f"a list of 1 to {_MOST_MESSAGES:,} messages")
    found = []
    for i, each in enumerate(value):
        message = Fields(each, f" for messages[{i}]")
        role = message.text("role", "")
        found.append({"role": _ROLES.get(role, role), "content": _content(message, i)})
    return found


def _content(message: Fields, index: int) -> str:
    """A content: a text, or a list of parts, which must be texts."""
    value = message.get("content", "")
    if isinstance(value, list):
        parts = [Fields(part, f" for a part of messages[{index}]") for part in value]
        if any(part.get("type") != "text" for part in parts):
            problem = "this model reads text only, found a part of another type"
            raise ApiError(400, f"messages[{index}]: {problem}", "messages")
        return "".join(part.text("text") for part in parts)
    if not isinstance(value, str):
        raise ApiError(400, f"messages[{index}]: content must be a text", "messages")
    return value
