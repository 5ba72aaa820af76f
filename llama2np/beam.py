"""Beam search: the likeliest of many continuations, where greedy choice sees one token ahead."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llama2np.arguments import having, none_means_default, number, token_list, whole
from llama2np.generation import Model
from llama2np.logits import likeliest, log_softmax
from llama2np.tokenizer import BOS, EOS
from llama2np.transformer import State


@dataclass(frozen=True, slots=True)
class Beam:
    """A continuation, and how likely it is."""

    tokens: tuple[int, ...] = ()
    logprob: float = 0.0  # of all its tokens together, in nats

    @property
    def ended(self) -> bool:
        """Whether its last token is BOS or EOS."""
        return self.tokens[-1:] in ((BOS,), (EOS,))

    @none_means_default
    def score(self, length_penalty: float | None = 1.0) -> float:
        """logprob / number of tokens ** length_penalty: at 0 the log-probability, at 1 its mean."""
        power = number("length_penalty", length_penalty)
        return float(self.logprob / max(len(self.tokens), 1) ** power)


@none_means_default
def beam_search(
    model: Model,
    prompt: Sequence[int] | np.ndarray,
    *,
    beams: int | None = 4,
    max_new_tokens: int | None = 64,
    length_penalty: float | None = 1.0,
) -> list[Beam]:
    """Return the `beams` continuations with the best scores that were found, the best first.

    prompt: tokens. In each step all that have not ended are continued by every token; of these
    and those that have, the `beams` with the best scores stay. It is over when all have ended,
    after max_new_tokens, or where the context ends. Raises ValueError.
    """
    having("model", model, "a Llama or a Transformer", "forward", "config")
    prompt = token_list("prompt", prompt, model.config.vocab_size)
    beams, max_new_tokens = whole("beams", beams), whole("max_new_tokens", max_new_tokens)
    length_penalty = number("length_penalty", length_penalty)
    if not math.isfinite(length_penalty):
        raise ValueError(f"length_penalty must be a finite number, not {length_penalty}")
    if beams < 1 or max_new_tokens < 0:
        raise ValueError(
            f"beams must be 1 or more, max_new_tokens 0 or more, not {beams} and {max_new_tokens}"
        )
    state = State(model.config)
    found = [(Beam(), state, model.forward(prompt, state))]
    last = min(max_new_tokens, model.config.seq_len - len(prompt) + 1)
    for step in range(1, last + 1):
        longer = [item for beam in found for item in _continued(*beam, beams)]
        longer.sort(key=lambda item: item[0].score(length_penalty), reverse=True)
        found = _read(model, longer[:beams]) if step < last else longer[:beams]
        if all(beam.ended for beam, _, _ in found):
            break
    return [beam for beam, _, _ in found]


_Found = tuple[Beam, State, np.ndarray]  # the State has read all but the last token


def _continued(beam: Beam, state: State, logits: np.ndarray, count: int) -> Iterator[_Found]:
    """The `count` likeliest continuations of a beam by a token; itself if it has ended."""
    if beam.ended:
        yield beam, state, logits
        return
    logprobs = log_softmax(logits)
    for token in likeliest(logprobs, count):
        logprob = beam.logprob + float(logprobs[token])
        yield Beam((*beam.tokens, int(token)), logprob), state, logits


def _read(model: Model, found: list[_Found]) -> list[_Found]:
    """Let each beam's last token be read, by a State of its own."""
    users = Counter(id(state) for beam, state, _ in found if not beam.ended)
    after: list[_Found] = []
    for beam, state, logits in found:
        if not beam.ended:
            users[id(state)] -= 1
            state = state.fork() if users[id(state)] else state
            logits = model.forward(beam.tokens[-1:], state)
        after.append((beam, state, logits))
    return after
