"""What Dask's workers run: calls, and a plugin that keeps the models open between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from distributed import Worker, WorkerPlugin, get_worker

from llama2np.bulk import opened
from llama2np.bulk.opened import Done, JobError, Models
from llama2np.bulk.tasks import Answer, Asked, Job

P = ParamSpec("P")
R = TypeVar("R")


class Keeper(WorkerPlugin):  # type: ignore[misc]
    """Keeps the models of a worker, so that each is mapped once, until the worker ends."""

    name = "llama2np"
    idempotent = True  # another client that registers it does not close the models

    def __init__(self) -> None:
        self.models: Models | None = None

    def setup(self, worker: Worker) -> None:
        """Nothing is opened yet: a model that cannot be opened must not end the worker."""
        self.models = Models()

    def teardown(self, worker: Worker) -> None:
        """Close the models."""
        if self.models is not None:
            self.models.close()


def describe_there(job: Job) -> dict[str, Any]:
    """`opened.describe` on this worker."""
    return _located(lambda: opened.describe(job, _models()))


def answers_there(job: Job, model: dict[str, Any], asked: list[Asked]) -> list[Answer]:
    """`opened.answers` on this worker."""
    return _located(lambda: opened.answers(job, model, asked, _models()))


def answer_lines_there(
    job: Job, model: dict[str, Any], file: tuple[int, str], lines: list[tuple[int, bytes]]
) -> Done:
    """`opened.answer_lines` on this worker."""
    return _located(lambda: opened.answer_lines(job, model, file, lines, _models()))


def _models() -> Models:
    """The models of this worker; those of this process where there is none (a bag may be computed
    by Dask's other schedulers).
    """
    try:
        plugin = get_worker().plugins.get(Keeper.name)
    except ValueError:
        plugin = None
    found = getattr(plugin, "models", None)
    return opened.HERE if found is None else found


def _located(call: Callable[[], R]) -> R:
    """Let an error say on which worker it happened."""
    try:
        return call()
    except JobError as error:
        try:
            name = f"worker {get_worker().address}: "
        except ValueError:
            name = ""
        raise JobError(f"{name}{error}") from None
