"""Byte-pair encoding: the merging of neighbours, which all BPE tokenizers share."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

# Two neighbours -> (priority, token they merge into), the lowest priority first; None: they do not.
Join = Callable[[int, int], tuple[float, int] | None]


def merge(tokens: list[int], join: Join) -> list[int]:
    """Merge the pair with the lowest priority, the leftmost of equals, until none merges.

    This takes O(n log n): a heap holds the candidate pairs. A pair is skipped if one of its tokens
    has changed since it was found.
    """
    after = list(range(1, len(tokens) + 1))  # a linked list, since a merge removes a token
    before = list(range(-1, len(tokens) - 1))
    tokens = [*tokens, -1]  # -1 marks the end of the list, and removed tokens

    def candidate(left: int) -> tuple[float, int, int, int, int] | None:
        a, b = tokens[left], tokens[after[left]]
        found = join(a, b) if b >= 0 else None
        return found and (found[0], left, a, b, found[1])

    heap = [pair for left in range(len(tokens) - 1) if (pair := candidate(left))]
    heapify(heap)
    while heap:
        _, left, a, b, joined = heappop(heap)
        if tokens[left] != a or tokens[right := after[left]] != b:
            continue
        tokens[left], tokens[right] = joined, -1
        after[left] = after[right]
        if after[left] < len(before):
            before[after[left]] = left
        for neighbour in (before[left], left):
            if neighbour >= 0 and (pair := candidate(neighbour)):
                heappush(heap, pair)
    return [token for token in tokens if token >= 0]
