"""/v1/completions: texts that continue prompts."""

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
from llama2np.serve.errors import ApiError
from llama2np.serve.events import Events
from llama2np.serve.fields import Fields
from llama2np.serve.generating import Started, unless_gone
from llama2np.serve.service import Service, finish_reason, usage

_MAX_TOKENS = 16  # OpenAI's default


@dataclass
class _Asked:
    """A request: prompts, and what is wanted for each of them. Its choices come in a row."""

    prompts: list[list[int]]
    requests: list[Request]
    echo: list[str]  # what each choice begins with
    logprobs: bool
    with_usage: bool
    ids: bool  # vLLM's return_token_ids


async def completions(service: Service, fields: Fields, receive: Receive) -> Any:
    """Answer a request. Raises ApiError, and Gone."""
    service.check_model(fields)
    asked = await service.prepared(_asked, service, fields)  # to encode a text may take a while
    if fields.flag("stream"):
        started = service.generator.start(asked.requests)
        return Events(_streamed(service, asked, started), started)
    done = await unless_gone(receive, service.generator.finish(asked.requests))
    body = service.head("text_completion", "cmpl")
    body["choices"] = [
        _choice(service, asked, each, i, 0, len(each.tokens), asked.echo[i] + each.text, True)
        for i, each in enumerate(done)
    ]
    return JSONResponse(body | {"usage": usage(done, asked.prompts)})


async def _streamed(
    service: Service, asked: _Asked, started: Started
) -> AsyncGenerator[dict[str, Any], None]:
    head, seen = service.head("text_completion", "cmpl"), [0] * len(asked.requests)
    done: list[Completion] = []
    begun = set[int]()
    async with aclosing(started) as news:
        async for each in news:
            i, completion = each.index, each.completion
            piece = each.piece if i in begun else asked.echo[i] + each.piece
            begun.add(i)
            choice = _choice(service, asked, completion, i, seen[i], each.count, piece, each.done)
            seen[i] = each.count
            if piece or each.done or choice["logprobs"]:
                yield head | {"choices": [choice]}
            if each.done:
                done.append(completion)
    if asked.with_usage:
        yield head | {"choices": [], "usage": usage(done, asked.prompts)}


def _choice(
    service: Service,
    asked: _Asked,
    completion: Completion,
    index: int,
    first: int,
    last: int,
    text: str,
    done: bool,
) -> dict[str, Any]:
    """A choice, or with the tokens `first` ... `last` - 1 a part of it."""
    found = None
    if asked.logprobs:
        last, tokenizer = logprobs.shown(completion, last), service.llama.tokenizer
        found = logprobs.for_completion(tokenizer, completion, first, last, len(asked.echo[index]))
    reason = finish_reason(completion) if done else None
    choice = {"index": index, "text": text, "logprobs": found, "finish_reason": reason}
    if asked.ids:
        choice["token_ids"] = completion.tokens[first:last]
        choice["prompt_token_ids"] = completion.prompt if not first else None
    return choice


def _asked(service: Service, fields: Fields) -> _Asked:
    model = service.llama
    options.refuse(fields, "suffix")
    common = options.common(fields, _MAX_TOKENS)
    common["logprobs"] = fields.whole("logprobs", None, 0, options.MOST_LOGPROBS)
    if fields.flag("echo") and common["logprobs"] is not None:
        message = "echo with logprobs is not supported: they are of generated tokens only"
        raise ApiError(400, message, "echo", "unsupported")
    prompts, requests, echo = [], [], []
    wanted, choices = _prompts(fields), options.choices(fields, common)
    service.generator.check_count(len(wanted) * len(choices))
    for prompt in wanted:
        made = _requests(service, prompt, choices)
        prompts.append(made[0].prompt)
        begin = model.tokenizer.decode(made[0].prompt, True) if fields.flag("echo") else ""
        requests += made
        echo += [begin] * len(made)
    with_usage = Fields(fields.get("stream_options", {}), " for stream_options").flag(
        "include_usage"
    )
    ids = fields.flag("return_token_ids")
    return _Asked(prompts, requests, echo, common["logprobs"] is not None, with_usage, ids)


def _requests(service: Service, prompt: Any, choices: list[dict[str, Any]]) -> list[Request]:
    if isinstance(prompt, str):
        service.check_size([prompt], "prompt")
    try:
        return service.llama.requests(prompt, choices)
    except ValueError as error:
        code = "context_length_exceeded" if "the context holds" in str(error) else None
        raise ApiError(400, str(error), "prompt", code) from None


def _prompts(fields: Fields) -> list[Any]:
    """The prompts: a text, texts, tokens, or lists of tokens."""
    value = fields.get("prompt", "")
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise fields.wrong("prompt", "a text, tokens, or a list of them")
    return [value] if isinstance(value[0], int) else value
