"""What can be done with many prompts: each task opens a model, and answers prompts in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from llama2np import __version__
from llama2np.analysis.evaluation import evaluate
from llama2np.analysis.zero_shot import PROMPT, zero_shot
from llama2np.arguments import wrong
from llama2np.bulk.prompts import Prompt, seed_of
from llama2np.classifier import Classifier
from llama2np.decoding.batch import Batch, complete
from llama2np.decoding.completion import Completion
from llama2np.decoding.options import Request
from llama2np.encoder import Encoder
from llama2np.formats import loading
from llama2np.llama import Llama
from llama2np.model.networks import is_encoder
from llama2np.text.tokenizer import Tokenizer

# A prompt with where it stands (for its seed), or why it is none.
Asked = tuple[tuple[int, ...], Prompt | Exception]
Answer = dict[str, Any] | Exception


@dataclass(frozen=True)
class Job:
    """What is done with all prompts of a run. Workers get it with each chunk of prompts.

    task: a key of TASKS. model and tokenizer: as for `Llama.load`, on the workers' file systems.
    options: of the task, for all prompts. drawn: see `seed_of`. threads: of the kernels, for
    each chunk; None: as many as there are processors. max_sequences and max_positions: see `Batch`.
    """

    task: str
    model: str
    tokenizer: str | None = None
    engine: str = "compiled"
    options: Mapping[str, Any] = field(default_factory=dict)
    drawn: int = 0
    threads: int | None = None
    max_sequences: int = 32
    max_positions: int | None = None
    version: str = __version__

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise wrong("task", " or ".join(TASKS), self.task)


class Task(Protocol):
    """An open model that answers prompts. Several threads may use it."""

    tokenizer: Tokenizer

    def __init__(self, job: Job) -> None:
        """Open the model. Raises ValueError, and OSError."""

    def check(self, job: Job) -> None:
        """Raise ValueError or TypeError for options that the task does not have."""

    def answers(self, job: Job, asked: Sequence[Asked]) -> list[Answer]:
        """The answer to each prompt, or the error that is in its place."""


class Generate:
    """Continue texts: the answers of `Llama.generate_batch`."""

    def __init__(self, job: Job) -> None:
        self._model = Llama.load(job.model, job.tokenizer, job.engine)
        self.tokenizer = self._model.tokenizer

    def check(self, job: Job) -> None:
        request_of(self._model, Prompt({"prompt": [0]}), job.options)
        self._batch(job)

    def answers(self, job: Job, asked: Sequence[Asked]) -> list[Answer]:
        found: list[Answer] = [ValueError("no answer")] * len(asked)
        running: list[tuple[int, Prompt]] = []

        def requests() -> Iterator[Request]:
            for i, (place, prompt) in enumerate(asked):
                if isinstance(prompt, Exception):
                    found[i] = prompt
                    continue
                try:
                    seeded = with_seed(prompt, job, place)
                    request = request_of(self._model, seeded, job.options)
                except (ValueError, TypeError) as error:
                    found[i] = error
                    continue
                running.append((i, seeded))
                yield request

        for each, _ in complete(self._batch(job), requests(), raising=False):
            if each.done:
                i, prompt = running[each.index]
                found[i] = answer_of(prompt, each) if each.error is None else each.error
        return found

    def _batch(self, job: Job) -> Batch:
        return Batch(
            self._model.transformer,
            self.tokenizer,
            max_sequences=job.max_sequences,
            max_positions=job.max_positions,
        )


def request_of(model: Llama, prompt: Prompt, options: Mapping[str, Any]) -> Request:
    """The request for a `Batch`. Raises ValueError, and TypeError for an unknown option."""
    prompt.given  # noqa: B018  (it raises ValueError if there is none)
    return model.request(prompt.fields, dict(options))


def answer_of(prompt: Prompt, done: Completion) -> dict[str, Any]:
    """What is written for a completion."""
    answer = {} if prompt.id is None else {"id": prompt.id}
    counts = {"prompt_tokens": len(done.prompt), "completion_tokens": len(done.tokens)}
    answer |= {"prompt": prompt.given, "text": done.text, "stop_reason": done.stop_reason, **counts}
    if done.logprobs:
        answer |= {"logprobs": done.logprobs, "top_logprobs": done.top_logprobs}
    return answer


def with_seed(prompt: Prompt, job: Job, place: tuple[int, ...]) -> Prompt:
    """The prompt with a seed: its own, else that of the run, else one that its place gives."""
    if prompt.fields.get("seed") or ("seed" not in prompt.fields and job.options.get("seed")):
        return prompt
    return Prompt(prompt.fields | {"seed": seed_of(job.drawn, *place)}, prompt.id)


class _OfTexts:
    """A task that takes texts only, and may read several of them together."""

    tokenizer: Tokenizer

    def check(self, job: Job) -> None:
        self._of(["a text"], job.options)

    def answers(self, job: Job, asked: Sequence[Asked]) -> list[Answer]:
        found: list[Answer] = [ValueError("no answer")] * len(asked)
        texts: list[tuple[int, Prompt]] = []
        for i, (_, prompt) in enumerate(asked):
            try:
                if isinstance(prompt, Exception):
                    raise prompt
                prompt.text  # noqa: B018  (it raises ValueError if there is none)
                texts.append((i, prompt))
            except ValueError as error:
                found[i] = error
        for start in range(0, len(texts), job.max_sequences):
            some = texts[start : start + job.max_sequences]
            answers = self._each([prompt.text for _, prompt in some], job.options)
            for (i, prompt), answer in zip(some, answers, strict=True):
                if isinstance(answer, dict) and prompt.id is not None:
                    answer = {"id": prompt.id} | answer
                found[i] = answer
        return found

    def _each(self, texts: list[str], options: Mapping[str, Any]) -> list[Answer]:
        """The answers to texts. If one of them makes an error, it alone has that error."""
        try:
            return list(self._of(texts, options))
        except ValueError as error:
            if len(texts) == 1:
                return [error]
        return [answer for text in texts for answer in self._each([text], options)]

    def _of(self, texts: list[str], options: Mapping[str, Any]) -> list[dict[str, Any]]:
        raise NotImplementedError


class Embed(_OfTexts):
    """Vectors of texts: `Encoder.embed`."""

    def __init__(self, job: Job) -> None:
        self._model = Encoder.load(job.model, job.tokenizer, job.engine)
        self.tokenizer = self._model.tokenizer

    def _of(self, texts: list[str], options: Mapping[str, Any]) -> list[dict[str, Any]]:
        vectors = self._model.embed(texts, **options)
        # Nine digits are enough for each float32 to come back as it was.
        return [{"embedding": [float(f"{x:.9g}") for x in row]} for row in vectors.tolist()]


class Perplexity(_OfTexts):
    """How well a model predicts each text: `evaluate`."""

    def __init__(self, job: Job) -> None:
        self._model = Llama.load(job.model, job.tokenizer, job.engine)
        self.tokenizer = self._model.tokenizer

    def _of(self, texts: list[str], options: Mapping[str, Any]) -> list[dict[str, Any]]:
        found = []
        for text in texts:
            result = evaluate(self._model, text, **options)
            counts = {"tokens": result.tokens, "bytes": result.bytes, "nats": result.nats}
            rates = {"perplexity": result.perplexity, "bits_per_byte": result.bits_per_byte}
            found.append(counts | rates)
        return found


class Classify(_OfTexts):
    """A label for each text: by a trained classifier, or by `zero_shot` with labels."""

    def __init__(self, job: Job) -> None:
        loaded = loading.load(job.model)
        how = job.model, job.tokenizer, job.engine
        self._encoder = Encoder.load(*how) if is_encoder(loaded.config) else None
        self._classifier = self._model = None
        if self._encoder is None and loaded.config.n_labels:
            self._classifier = Classifier.load(*how)
        elif self._encoder is None:
            self._model = Llama.load(*how)
        opened = self._encoder or self._classifier or self._model
        assert opened is not None
        self.tokenizer = opened.tokenizer

    def _of(self, texts: list[str], options: Mapping[str, Any]) -> list[dict[str, Any]]:
        if (self._model is None) == bool(options.get("labels")):
            raise ValueError(
                "labels are needed: this model has none of its own"
                if self._model is not None
                else "this model has labels of its own: use it without labels"
            )
        if self._model is not None:
            labels = tuple(options["labels"])
            prompt, normalize = options.get("prompt") or PROMPT, bool(options.get("normalize"))
            rows = zero_shot(self._model, texts, labels, prompt, normalize)
            found = [dict(zip(labels, row.tolist(), strict=True)) for row in rows]
        else:
            found = (self._encoder or self._classifier).classify(texts)  # type: ignore[union-attr]
        return [{"predicted": max(each, key=each.__getitem__), "scores": each} for each in found]


TASKS: dict[str, type[Task]] = {
    "generate": Generate,
    "embed": Embed,
    "perplexity": Perplexity,
    "classify": Classify,
}
