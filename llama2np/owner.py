"""Only one caller at a time: a second one gets a ValueError instead of corrupting memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


class Owner:
    """`with owner:` owns an object during the block.

    Another thread, and the same thread inside the block (a hook that calls the model), get a
    ValueError immediately: this is not a lock that waits. A copy, or a pickle, of an object has its
    own Owner.
    """

    __slots__ = ("_advice", "_held")

    def __init__(self, advice: str):
        # The text of the error: the object that is in use, and what to do instead.
        self._advice = advice
        self._held = threading.Lock()

    def __enter__(self) -> None:
        if not self._held.acquire(blocking=False):
            raise ValueError(self._advice)

    def __exit__(self, *_: object) -> None:
        self._held.release()

    def __reduce__(self) -> tuple[object, ...]:
        return Owner, (self._advice,)

    @property
    def busy(self) -> bool:
        """Whether a caller owns the object now."""
        return self._held.locked()


class Owned(Iterator[T]):
    """The values of `source`. Each is computed inside `with owner:`."""

    def __init__(self, source: Iterator[T], owner: Owner):
        self._source, self._owner = source, owner

    def __next__(self) -> T:
        with self._owner:
            return next(self._source)

    def close(self) -> None:
        """End it, as a generator's `close` does."""
        with self._owner:
            self._source = iter(())
