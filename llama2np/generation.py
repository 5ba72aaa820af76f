"""From a prompt to a stream of tokens, and on to text. Needs of a model only `forward`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from llama2np.sampler import Sampler
from llama2np.transformer import State, Transformer


def continue_tokens(
    transformer: Transformer, state: State, tokens: Sequence[int], sampler: Sampler, end: int
) -> Iterator[int]:
    """Read `tokens`, then yield sampled ones for ever, or until `end` positions are read.

    A token is read when the next one is asked for: the last one yielded is never read.
    """
    while state.pos + len(tokens) <= end:
        token = sampler.sample(transformer.forward(tokens, state))
        yield token
        tokens = [token]


def until(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """Pass text on up to the first of the strings in `stop`, holding back what may begin one."""
    held = ""
    for piece in pieces:
        held += piece
        found = [at for word in stop if (at := held.find(word)) >= 0]
        if found:
            yield held[: min(found)]
            return
        keep = max((_overlap(held, word) for word in stop), default=0)
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    if held:
        yield held


def _overlap(text: str, word: str) -> int:
    """The length of the longest end of `text` that begins `word`."""
    return next((n for n in range(min(len(word), len(text)), 0, -1) if text.endswith(word[:n])), 0)
