"""`llama2np.bulk.map`: answers to prompts in Python, by the workers of a Dask cluster."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from llama2np.arguments import path_like, whole, wrong
from llama2np.bulk.opened import one_line
from llama2np.bulk.prompts import Prompt
from llama2np.bulk.tasks import Answer, Asked, Job

if TYPE_CHECKING:
    from dask.bag import Bag
    from distributed import Client

_CHUNK = 64


def map(
    client: Client,
    model: str | os.PathLike[str],
    prompts: Iterable[Any] | Bag,
    task: str = "generate",
    *,
    chunk: int = _CHUNK,
    tokenizer: str | os.PathLike[str] | None = None,
    engine: str = "compiled",
    threads: int | None = 1,
    max_sequences: int = 32,
    max_positions: int | None = None,
    **options: Any,
) -> Iterator[dict[str, Any]] | Bag:
    """Answer prompts on Dask's workers; yield a dict for each, in the order of the prompts.

    model: a path or a name on the workers; each of them opens it once. prompts: an iterable, which
    may be endless, of texts, lists of tokens, or dicts as those of `Llama.generate_batch`, perhaps
    with an "id"; or a Dask bag of them, for a bag of the dicts, partition by partition. task:
    "generate", "embed", "perplexity" or "classify". chunk: prompts that a worker takes at a time.
    threads: of the kernels, for each chunk. max_sequences and max_positions: see `Batch`. options:
    of the task, for all prompts: those of `generate`, of `Encoder.embed`, of `evaluate`, or
    labels, prompt and normalize.

    A dict has what `llama2np generate` writes, or "error" with the reason why there is no answer.
    The answers depend neither on the workers nor on `chunk`, if there is a seed or temperature=0.
    Raises ValueError and TypeError for wrong arguments, and JobError, a ValueError, if the workers
    cannot open the model or do not know an option.
    """
    from llama2np.bulk import cluster  # here, because it imports distributed

    job = Job(
        task,
        os.fspath(path_like("model", model)),
        None if tokenizer is None else os.fspath(path_like("tokenizer", tokenizer)),
        engine,
        options,
        int.from_bytes(os.urandom(6), "big") | 1,
        None if threads is None else whole("threads", threads, 1),
        whole("max_sequences", max_sequences, 1),
        max_positions,
    )
    chunk = whole("chunk", chunk, 1)
    if isinstance(prompts, str | dict) or not (
        hasattr(prompts, "map_partitions") or isinstance(prompts, Iterable)
    ):
        raise wrong("prompts", "a list of prompts, or a Dask bag", prompts)
    found = cluster.prepare(client, job)
    if hasattr(prompts, "map_partitions"):
        return _of_bag(prompts, job, found)
    return _of_list(client, prompts, job, found, chunk)


def _of_list(
    client: Client, prompts: Iterable[Any], job: Job, model: dict[str, Any], chunk: int
) -> Iterator[dict[str, Any]]:
    from llama2np.bulk import cluster
    from llama2np.bulk.worker import answers_there

    sizes: dict[int, int] = {}

    def calls() -> Iterator[tuple[str, tuple[Any, ...]]]:
        source, number = iter(prompts), 0
        while some := list(islice(source, chunk)):
            first = number * chunk
            sizes[number] = len(some)
            yield str(number), (job, model, [asked((first + i,), x) for i, x in enumerate(some)])
            number += 1

    ready: dict[int, list[dict[str, Any]]] = {}
    turn = 0
    name = f"llama2np-{job.task}"
    held = ready.__len__
    for key, result in cluster.completed(client, name, answers_there, calls(), held):
        number = int(key)
        if isinstance(result, Exception):
            lost = {"error": f"its chunk {killing(result)}"}
            ready[number] = [dict(lost) for _ in range(sizes.pop(number))]
        else:
            sizes.pop(number)
            ready[number] = [as_dict(answer) for answer in result]
        while turn in ready:
            yield from ready.pop(turn)
            turn += 1


def _of_bag(bag: Bag, job: Job, model: dict[str, Any]) -> Bag:
    from dask.bag import from_sequence

    numbers = from_sequence(range(bag.npartitions), npartitions=bag.npartitions)
    return bag.map_partitions(_of_partition, numbers, job=job, model=model)


def _of_partition(
    prompts: Iterable[Any], numbers: Iterable[int], job: Job, model: dict[str, Any]
) -> list[dict[str, Any]]:
    from llama2np.bulk.worker import answers_there

    (number,) = numbers
    some = [asked((number, i), prompt) for i, prompt in enumerate(prompts)]
    return [as_dict(answer) for answer in answers_there(job, model, some)]


def asked(place: tuple[int, ...], value: Any) -> Asked:
    """A prompt with its place, or why it is none."""
    try:
        return place, Prompt.of(value)
    except (ValueError, TypeError) as error:
        return place, error


def as_dict(answer: Answer) -> dict[str, Any]:
    """An answer, or a dict with "error"."""
    return {"error": one_line(answer)} if isinstance(answer, Exception) else answer


def killing(error: Exception) -> str:
    """What a KilledWorker says about a chunk, which `completed` has tried twice."""
    times = 2 * (getattr(error, "allowed_failures", 0) + 1)
    return f"was given up after the {times} workers that took it had died"
