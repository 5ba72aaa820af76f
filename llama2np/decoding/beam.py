"""Beam search: the most probable of many continuations. Greedy choice compares only one token."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from llama2np.arguments import having, none_means_default, number, token_list, whole
from llama2np.decoding.generation import Model
from llama2np.decoding.logits import forbid, log_softmax, top_tokens
from llama2np.model.networks import check_predicts_tokens
from llama2np.model.transformer import State
from llama2np.text.tokenizer import BOS, EOS


@dataclass(frozen=True, slots=True)
class Beam:
    """A continuation and its log-probability."""

    tokens: tuple[int, ...] = ()
    logprob: float = 0.0  # of all its tokens together, in nats
    ends: Collection[int] = field(default=(BOS, EOS), repr=False, compare=False)

    @property
    def ended(self) -> bool:
        """Whether its last token is one of `ends`: BOS or EOS."""
        return bool(self.tokens) and self.tokens[-1] in self.ends

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
    """Return the `beams` continuations with the best scores that the search finds, the best first.

    prompt: tokens. Each step extends every continuation that has not ended by every token. The
    `beams` with the best scores are kept, ended ones included. The search stops when all have
    ended, after max_new_tokens, or at the end of the context. The tokenizer of `model` defines BOS
    and EOS, and the tokens without a piece, which are never chosen; without a tokenizer, BOS and
    EOS are llama2.c's. Raises ValueError.
    """
    having("model", model, "a Llama or a Transformer", "forward", "config")
    check_predicts_tokens(model.config)
    prompt = token_list("prompt", prompt, model.config.vocab_size)
    beams, max_new_tokens = whole("beams", beams), whole("max_new_tokens", max_new_tokens)
    length_penalty = number("length_penalty", length_penalty)
    if not math.isfinite(length_penalty):
        raise ValueError(f"length_penalty must be a finite number, not {length_penalty}")
    if beams < 1 or max_new_tokens < 0:
        raise ValueError(
            f"beams must be 1 or more, max_new_tokens 0 or more, not {beams} and {max_new_tokens}"
        )
    tokenizer = getattr(model, "tokenizer", None)  # a Llama has one
    first = Beam() if tokenizer is None else Beam(ends=tokenizer.ends)
    missing = () if tokenizer is None else tokenizer.missing
    state = State(model.config)
    found = [(first, state, model.forward(prompt, state))]
    last = min(max_new_tokens, model.config.seq_len - len(prompt) + 1)
    for step in range(1, last + 1):
        longer = [item for beam in found for item in _continued(*beam, beams, missing)]
        longer.sort(key=lambda item: item[0].score(length_penalty), reverse=True)
        found = _read(model, longer[:beams]) if step < last else longer[:beams]
        if all(beam.ended for beam, _, _ in found):
            break
    return [beam for beam, _, _ in found]


_Found = tuple[Beam, State, np.ndarray]  # the State has read all but the last token


def _continued(
    beam: Beam,
    state: State,
    logits: np.ndarray,
    count: int,
    missing: Sequence[int] | np.ndarray,
) -> Iterator[_Found]:
    """The `count` most probable extensions of a beam by one token; the beam itself if it ended."""
    if beam.ended:
        yield beam, state, logits
        return
    logprobs = forbid(log_softmax(logits), missing)
    for token in top_tokens(logprobs, min(count, len(logprobs) - len(missing))):
        logprob = beam.logprob + float(logprobs[token])
        yield Beam((*beam.tokens, int(token)), logprob, beam.ends), state, logits


def _read(model: Model, found: list[_Found]) -> list[_Found]:
    """Read each beam's last token, with a separate State for each beam."""
    users = Counter(id(state) for beam, state, _ in found if not beam.ended)
    after: list[_Found] = []
    for beam, state, logits in found:
        if not beam.ended:
            users[id(state)] -= 1
            state = state.fork() if users[id(state)] else state
            logits = model.forward(beam.tokens[-1:], state)
        after.append((beam, state, logits))
    return after
