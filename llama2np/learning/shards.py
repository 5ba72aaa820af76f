"""A batch in shards, which several threads compute: the result does not depend on their number."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from llama2np.learning.batch import Batch

_TOKENS = 1024  # of a shard, about: what it computes between two matrix products stays in the cache

Item = TypeVar("Item")
Result = TypeVar("Result")


def shards(batch: Batch) -> list[Batch]:
    """Parts of a batch with about the same number of sequences, a power of two of them."""
    count = 1
    while count * _TOKENS < batch.tokens.size:
        count *= 2
    rows = np.array_split(np.arange(len(batch.tokens)), min(count, len(batch.tokens)))
    return [_part(batch, some[0], some[-1] + 1) for some in rows]


def _part(batch: Batch, first: int, end: int) -> Batch:
    """The sequences first to end, as wide as the longest of them."""
    longest = batch.shape[1]
    width = int(batch.lengths[first:end].max())
    which = slice(*np.searchsorted(batch.rows, (first * longest, end * longest)))
    row, place = np.divmod(batch.rows[which] - first * longest, longest)
    return Batch(
        batch.tokens[first:end, :width],
        batch.lengths[first:end],
        row * width + place,
        batch.targets[which],
        None if batch.types is None else batch.types[first:end, :width],
        None if batch.weights is None else batch.weights[which],
    )


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """The results of a function of each item, in the order of the items, by several threads.

    There are never many more results than threads in memory. Each matrix product is computed by one
    thread: BLAS's own would wait for each other on a busy machine, and may change the last bits.
    """
    with _blas().limit(limits=1, user_api="blas"):
        if threads == 1:
            yield from map(function, items)
            return
        with ThreadPoolExecutor(threads) as pool:
            waiting: deque[Future[Result]] = deque()
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


@functools.cache
def _blas() -> ThreadpoolController:
    """BLAS's number of threads, of NumPy's libraries (it takes a millisecond to find them)."""
    return ThreadpoolController()
