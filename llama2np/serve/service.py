"""What the endpoints share: the model, the worker, the numbers, the limits."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from llama2np.classifier import Classifier
from llama2np.decoding.batch import Batch
from llama2np.decoding.completion import Completion
from llama2np.encoder import Encoder
from llama2np.llama import Llama
from llama2np.serve.aside import Aside
from llama2np.serve.errors import ApiError
from llama2np.serve.fields import Fields
from llama2np.serve.generating import Generator
from llama2np.serve.metrics import Metrics
from llama2np.serve.worker import Worker

T = TypeVar("T")
_MOST_ASIDE, _MOST_PREPARING = 8, 4
_FINISH = {"end": "stop", "stop": "stop", "max_new_tokens": "length", "context": "length"}


@dataclass
class Service:
    """One model, and everything that serves it.

    name: as clients call the model. begin: is called first in each thread that computes, since the
    number of threads for the kernels is a setting of the thread that calls them.
    """

    model: Llama | Encoder | Classifier
    name: str
    max_sequences: int = 32
    max_positions: int | None = None
    max_waiting: int = 64
    max_body: int = 2**22  # bytes
    api_key: str | None = None
    hosts: tuple[str, ...] = ()  # the names by which clients may call the server; (): any
    begin: Callable[[], object] = lambda: None
    metrics: Metrics = field(default_factory=Metrics)
    created: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def worker(self) -> Worker:
        """The thread that generates. Raises ApiError for an encoder."""
        model = self.llama
        batch = Batch(
            model.transformer,
            model.tokenizer,
            max_sequences=self.max_sequences,
            max_positions=self.max_positions,
        )
        return Worker(batch, self.max_waiting, self.begin)

    @cached_property
    def generator(self) -> Generator:
        """The worker, for coroutines."""
        return Generator(self.worker, self.metrics)

    @cached_property
    def aside(self) -> Aside:
        """The thread for other work than generating."""
        return Aside(_MOST_ASIDE, self.begin)

    @property
    def llama(self) -> Llama:
        """The model, if it generates text. Raises ApiError for other models."""
        if isinstance(self.model, Llama):
            return self.model
        if isinstance(self.model, Classifier):
            raise ApiError(400, f"{self.name} is a classifier: it has /v1/classify only")
        raise ApiError(400, f"{self.name} is an encoder: it has /v1/embeddings only")

    @property
    def encoder(self) -> Encoder:
        """The model, if it is an encoder. Raises ApiError for other models."""
        if isinstance(self.model, Encoder):
            return self.model
        kind = "is a classifier" if isinstance(self.model, Classifier) else "generates text"
        raise ApiError(400, f"{self.name} {kind}: embeddings need an encoder, such as BERT")

    @property
    def classifier(self) -> Classifier | Encoder:
        """The model, if it has labels. Raises ApiError for other models."""
        model = self.model
        if isinstance(model, Classifier) or (isinstance(model, Encoder) and model.classifies):
            return model
        raise ApiError(400, f"{self.name} has no labels: /v1/classify needs a classifier")

    @cached_property
    def most_bytes(self) -> int:
        """A text of more bytes than this never fits into the context: it need not be encoded.

        A tokenizer may drop white space; twice the bytes of the longest tokens leave room for that.
        """
        longest = max(map(len, self.llama.tokenizer.pieces), default=1)
        return 2 * longest * self.llama.config.seq_len

    def check_size(self, texts: Iterable[str], name: str) -> None:
        """Raise an ApiError for texts that are too long together. name: the field of the body."""
        size = sum(len(text) for text in texts)  # characters: at most the bytes
        if size > self.most_bytes:
            most = self.llama.config.seq_len
            message = f"{name} has {size:,} characters, the context holds {most:,} tokens"
            raise ApiError(400, message, name, "context_length_exceeded")

    def open(self) -> None:
        """Begin the threads: two requests that come at once must not begin two workers."""
        _ = self.aside, self.generator if isinstance(self.model, Llama) else None

    async def prepared(self, function: Callable[..., T], *arguments: Any) -> T:
        """The value of a function that may take a while, such as encoding; few run at a time."""
        return await run_sync(function, *arguments, limiter=self._limiter)

    @cached_property
    def _limiter(self) -> CapacityLimiter:
        return CapacityLimiter(_MOST_PREPARING)

    def close(self) -> None:
        """End the threads, if they have begun."""
        for name in ("worker", "aside"):
            if name in self.__dict__:
                getattr(self, name).close()

    def check_model(self, fields: Fields) -> None:
        """Raise an ApiError if a request is for another model."""
        if (name := fields.text("model", self.name)) != self.name:
            message = f"there is no model {name!r}, this server has {self.name!r}"
            raise ApiError(404, message, "model", "model_not_found")

    def head(self, kind: str, prefix: str) -> dict[str, Any]:
        """The fields with which a response begins."""
        name = f"{prefix}-{uuid.uuid4().hex}"
        return {"id": name, "object": kind, "created": int(time.time()), "model": self.name}


def finish_reason(completion: Completion) -> str:
    """OpenAI's word for the reason why a text has ended."""
    return _FINISH.get(completion.stop_reason or "", "stop")


def usage(completions: list[Completion], prompts: list[list[int]]) -> dict[str, Any]:
    """The tokens of a request. prompts: each counts once, whatever the number of its choices."""
    read, made = sum(map(len, prompts)), sum(len(each.tokens) for each in completions)
    return {
        "prompt_tokens": read,
        "completion_tokens": made,
        "total_tokens": read + made,
        "prompt_tokens_details": {"cached_tokens": min((c.reused for c in completions), default=0)},
    }
