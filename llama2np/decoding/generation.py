"""From a prompt to a stream of tokens, and from tokens to text. A model needs only `forward`."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from llama2np.arguments import none_means_default, token_list, whole, wrong
from llama2np.decoding.logits import forbid
from llama2np.decoding.sampler import Sampler
from llama2np.decoding.transcript import StopReason, Transcript
from llama2np.model.config import Config
from llama2np.model.networks import check_predicts_tokens
from llama2np.model.state import State
from llama2np.output import brief
from llama2np.owner import Owned, Owner
from llama2np.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llama2np.model.transformer import Transformer

# (tokens so far, (n,) int) -> a draft of the tokens that follow, of any length.
Draft = Callable[[np.ndarray], Sequence[int]]


_OTHER_TEXT = "the state was used for another text in the meantime: use a State for each text"


class Model(Protocol):
    """A Llama, a Transformer, or any object with their `forward` and `config`."""

    @property
    def config(self) -> Config: ...

    def forward(
        self, tokens: Sequence[int] | np.ndarray, state: State, all_logits: bool = False
    ) -> np.ndarray: ...


def continue_tokens(
    model: Model,
    state: State,
    tokens: Sequence[int],
    sampler: Sampler,
    end: int,
    draft: Draft | None = None,
    missing: Sequence[int] | np.ndarray = (),
) -> Iterator[tuple[int, np.ndarray]]:
    """Read `tokens`, then yield sampled tokens until `end` positions are read.

    Each token comes with the logits (vocab_size,) that it was sampled from. The network reads a
    token when the caller requests the next one: the last one yielded is never read.

    `draft` makes decoding speculative (Leviathan et al. 2023): the network reads the last token and
    the draft in one pass, and the draft is accepted up to the first token that differs from the
    sampler's choice. So the tokens, and their logits to the bit, are the same as without it.
    Without a draft, and with a greedy sampler, small networks generate 2, 4, 8 ... tokens per call:
    see `Transformer.greedy`.

    missing: tokens without a piece. They are chosen only if the sampler's logit_bias names them.
    """
    forbidden = without_bias(missing, sampler)
    prompt_length = state.pos + len(tokens)
    drafted: list[int] = []
    # A small network generates several tokens in one call: a draft that is always accepted.
    max_count = getattr(model, "max_greedy_tokens", 1) if sampler.greedy and not draft else 1
    while state.pos + len(tokens) <= end:
        known = state.pos + len(tokens)  # positions after this pass, without the draft
        tokens = with_those_to_reread(model, state, tokens, len(drafted))
        # As many as are generated already, so that little is lost if the text ends among them.
        if (count := min(max_count, known - prompt_length, end - state.pos)) > 1:
            network = cast("Transformer", model)  # a model with max_greedy_tokens has greedy, too
            read, logits = network.greedy(tokens[0], state, count)
            drafted = read[1:].tolist()
        else:
            logits = model.forward([*tokens, *drafted], state, all_logits=bool(drafted))
        if state.pos != known + len(drafted):
            raise ValueError(_OTHER_TEXT)
        for i, row in enumerate(logits if drafted else [logits]):
            state.pos = known + i  # as if the draft were read token by token
            token = sampler.sample(forbid(row, forbidden), state.tokens, prompt_length)
            yield token, row
            if state.pos != known + i:
                raise ValueError(_OTHER_TEXT)
            if i == len(drafted) or token != drafted[i]:
                break
        tokens, drafted = [token], []
        if draft and (left := end - state.pos - 1) > 0:
            drafted = list(draft(np.append(state.tokens, token))[:left])
            size = model.config.vocab_size  # a token outside cannot be accepted
            drafted = drafted[: next((i for i, t in enumerate(drafted) if not 0 <= t < size), left)]


def without_bias(missing: Sequence[int] | np.ndarray, sampler: Sampler) -> np.ndarray:
    """The tokens of `missing` that must never be chosen: (n,) int64."""
    return np.array([token for token in missing if token not in sampler.logit_bias], np.int64)


def limit_of(model: Model, prompt: Sequence[int], most: int | None) -> tuple[int, StopReason]:
    """How many tokens may follow a prompt, of at most `most`, and the reason why it ends then."""
    limit = model.config.seq_len - len(prompt) + 1
    if most is not None and (most := whole("max_new_tokens", most, 0)) <= limit:
        return most, "max_new_tokens"
    return limit, "context"


def with_those_to_reread(
    model: Model, state: State, tokens: Sequence[int], drafted: int = 0
) -> Sequence[int]:
    """`tokens`, after those that `state` has read if they must be read again."""
    must_reread = getattr(model, "must_reread", None)
    if must_reread is None or not must_reread(state, len(tokens) + drafted):
        return tokens
    read = state.tokens.tolist()
    state.truncate(0)
    return [*read, *tokens]


_IN_USE = (
    "the Generation is being read by another thread, or by the function that made this call: "
    "read it in one place, and begin one for each thread with generate()"
)


class Generation(Iterator[str]):
    """A text that is being generated: an iterator over its pieces.

    A piece is a str for each token, "" inside a character. The attributes describe what has been
    generated so far; `read` returns the rest. If `tokens` or `text` is read before the first
    piece is, the whole text is generated. None means the default of an argument. Raises ValueError
    for arguments of another type.
    """

    @none_means_default
    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        sampler: Sampler,
        *,
        state: State,
        max_new_tokens: int | None = None,
        stop: str | Sequence[str] | None = (),
        logprobs: int | None = None,
        draft: Draft | None = None,
    ):
        if not isinstance(state, State):
            raise wrong("state", "a State", state)
        check_predicts_tokens(model.config)
        _check_draft(draft)
        self.prompt = token_list("prompt", prompt)
        self.state = state  # it has read the prompt and all tokens but the last
        self._text = ""
        self._begun = False
        self._ahead: deque[str] = deque()  # pieces that have been generated, but not yielded
        # The time of each token; that of the first includes reading the prompt. If one call
        # generates several tokens, its whole time counts for the first of them.
        self.seconds: list[float] = []
        tokenizer = tokenizer.extended(model.config.vocab_size)
        self._transcript = Transcript(
            tokenizer, self.prompt[-1], () if stop is None else stop, logprobs
        )
        self._ended = False
        limit, self._limit = limit_of(model, self.prompt, max_new_tokens)
        unread = state.reuse(self.prompt)
        end = len(self.prompt) + limit - 1
        source = continue_tokens(model, state, unread, sampler, end, draft, tokenizer.missing)
        self._pieces = Owned(self._decoded(source if limit else iter(())), Owner(_IN_USE))

    def __next__(self) -> str:
        return self._ahead.popleft() if self._ahead else self._generated()

    def _generated(self) -> str:
        self._begun = True
        try:
            piece = next(self._pieces)
        except StopIteration:
            self._ended = True
            raise
        self._text += piece
        return piece

    @property
    def stop_reason(self) -> StopReason | None:
        """Why the text ended; None until it has."""
        return self._transcript.stop_reason if self._ended else None

    @property
    def logprobs(self) -> list[float]:
        """With the argument `logprobs`: the log-probability of each token."""
        return self._transcript.logprobs

    @property
    def top_logprobs(self) -> list[dict[int, float]]:
        """With the argument `logprobs`, for each token the log-probabilities of the most probable
        ones at its position: {token: log-probability}.
        """
        return self._transcript.top_logprobs

    @property
    def tokens(self) -> list[int]:
        """All chosen tokens so far, the one that ended the text included."""
        self._generate_all_unless_begun()
        return self._transcript.tokens

    @property
    def text(self) -> str:
        """All pieces so far."""
        self._generate_all_unless_begun()
        return self._text

    def _generate_all_unless_begun(self) -> None:
        if not self._begun:
            self._ahead.extend(iter(self._generated, None))

    def read(self) -> str:
        """Generate to the end; return the text that was not yielded before.

        Like the iteration, this raises ValueError if the logits are not finite, and if the state
        was used for another text in the meantime.
        """
        return "".join(self)

    @property
    def tokens_per_second(self) -> float:
        """The speed after the first token, whose time includes the prompt; nan if there is none."""
        after_first = self.seconds[1:]
        return len(after_first) / sum(after_first) if after_first else math.nan

    def __repr__(self) -> str:
        return (
            f"Generation(text={brief(self._text)}, tokens={len(self._transcript.tokens)}, "
            f"stop_reason={self.stop_reason!r})"
        )

    def _decoded(self, source: Iterator[tuple[int, np.ndarray]]) -> Iterator[str]:
        """The text of each token before the one that ends the text."""
        transcript, start = self._transcript, time.perf_counter()
        for token, logits in source:
            self.seconds.append(time.perf_counter() - start)
            piece = transcript.add(token, logits)
            if piece or transcript.stop_reason != "end":
                yield piece
            if transcript.stop_reason:
                return
            start = time.perf_counter()
        if rest := transcript.finish(self._limit):
            yield rest


def _check_draft(draft: Draft | None) -> None:
    if draft is not None and not callable(draft):
        kind = type(draft).__name__
        raise ValueError(
            f"draft must be a function of the tokens, not {kind}; did you mean DraftModel(...)?"
        )
