"""Sharing of prefixes: a prompt that begins like an earlier text reuses that text's KV cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from llama2np.decoding.completion import Completion
from llama2np.model.state import State

LEAST = 16  # tokens; for fewer, copying a chunk is not worth it


def pages(states: Iterable[State | None]) -> int:
    """The number of chunks of KV cache that these States hold together; shared ones count once."""
    addresses = [state.addresses for state in states if state is not None]
    return len(np.unique(np.concatenate(addresses))) if addresses else 0


def common(a: Sequence[int] | np.ndarray, b: Sequence[int] | np.ndarray) -> int:
    """The length of the longest common prefix of two sequences of tokens."""
    most = min(len(a), len(b))
    differ = np.flatnonzero(np.asarray(a[:most]) != np.asarray(b[:most]))
    return int(differ[0]) if differ.size else most


class Prefixes:
    """The texts whose KV caches may be reused: those that are being read, and some older ones.

    most: how many States of finished texts are kept.
    """

    def __init__(self, most: int):
        self._most = most
        self.kept: list[State] = []  # of finished texts, the last one that was used last

    def keep(self, state: State) -> None:
        """Keep the State of a finished text."""
        self.kept.append(state)
        del self.kept[: len(self.kept) - self._most]

    def drop(self) -> bool:
        """Give up the State that was not used for the longest time; False if there is none."""
        if self.kept:
            del self.kept[0]
            return True
        return False

    def find(
        self, tokens: Sequence[int] | np.ndarray, active: Iterable[Completion]
    ) -> tuple[State | None, int, bool]:
        """The State that has read most of `tokens`, and how many; the last token does not count.

        The third value is whether one of `active` is about to read more of them: then it is worth
        waiting for.
        """
        tokens, best, read, coming = np.asarray(tokens), None, 0, 0  # an array compares faster
        most = len(tokens) - 1
        for state in self.kept:
            same = min(common(state.tokens, tokens), most)
            if same > max(read, LEAST - 1) and state.keeps(same):
                best, read = state, same
        for other in active:
            if (its := other.state) is None:
                continue
            same = min(common(its.tokens, tokens), most)
            if same == its.pos:
                coming = max(coming, same + min(common(other.unread, tokens[same:]), most - same))
            if same > max(read, LEAST - 1) and its.keeps(same):
                best, read = its, same
        self._touch(best)
        return best, read, coming >= read + LEAST

    def _touch(self, used: State | None) -> None:
        """Record that a State was used: it is given up after all others."""
        self.kept.sort(key=lambda state: state is used)
