"""What the endpoints share: the model, the worker, the numbers, the limits."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

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

_MOST_ASIDE = 8
_FINISH = {"end": "stop", "stop": "stop", "max_new_tokens": "length", "context": "length"}


@dataclass
class Service:
    """One model, and everything that serves it. name: as clients call the model."""

    model: Llama | Encoder | Classifier
    name: str
    max_sequences: int = 32
    max_positions: int | None = None
    max_waiting: int = 64
    max_body: int = 2**22  # bytes
    api_key: str | None = None
    hosts: tuple[str, ...] = ()  # the names by which clients may call the server; (): any
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
        return Worker(batch, self.max_waiting)

    @cached_property
    def generator(self) -> Generator:
        """The worker, for coroutines."""
        return Generator(self.worker, self.metrics)

    @cached_property
    def aside(self) -> Aside:
        """The thread for other work than generating."""
        return Aside(_MOST_ASIDE)

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
