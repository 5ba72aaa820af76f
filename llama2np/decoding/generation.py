"""From a prompt to a stream of tokens, and on to text. Needs of a model only `forward`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, cast

import numpy as np

from llama2np.arguments import none_means_default, texts, token_list, whole, wrong
from llama2np.decoding.logits import forbid, likeliest, log_softmax
from llama2np.decoding.sampler import Sampler
from llama2np.model.config import Config
from llama2np.model.state import State
from llama2np.output import brief
from llama2np.owner import Owned, Owner
from llama2np.text.tokenizer import Decoder, Tokenizer

if TYPE_CHECKING:
    from llama2np.model.transformer import Transformer

StopReason = Literal["end", "stop", "max_new_tokens", "context"]

# (tokens so far, (n,) int) -> a guess at those that follow, of any length.
Draft = Callable[[np.ndarray], Sequence[int]]


_OTHER_TEXT = "the state was used for another text in the meantime"


class Model(Protocol):
    """What writes: a Llama, a Transformer, or anything with their `forward` and `config`."""

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
    """Read `tokens`, then yield sampled ones for ever, or until `end` positions are read.

    With each comes the logits (vocab_size,) that it was sampled from. A token is read when the
    next one is asked for: the last one yielded is never read.

    `draft` makes decoding speculative (Leviathan et al. 2023): its guess is read along with the
    token before it, in one pass, and kept as far as the sampler chooses the same. So the tokens
    are those without it. (Of guesses of kernels.FEW tokens and more, float32 logits may differ in
    their last bits: large matrix products add in another order.) Without one, a greedy sampler lets
    a small network go on by itself, for ever more tokens: see `Transformer.greedy`.

    missing: tokens without a piece, which are not chosen unless the sampler's logit_bias has them.
    """
    forbidden = np.array([token for token in missing if token not in sampler.logit_bias], np.int64)
    given = state.pos + len(tokens)
    guess: list[int] = []
    # A small network generates several tokens in one call: a draft that is always right.
    stride = getattr(model, "max_greedy_tokens", 1) if sampler.greedy and not draft else 1
    while state.pos + len(tokens) <= end:
        known = state.pos + len(tokens)
        if (count := min(stride, known - given, end - state.pos)) > 1:
            network = cast("Transformer", model)  # what has max_greedy_tokens has greedy, too
            read, logits = network.greedy(tokens[0], state, count)
            guess = read[1:].tolist()
        else:
            logits = model.forward([*tokens, *guess], state, all_logits=bool(guess))
        if state.pos != known + len(guess):
            raise ValueError(_OTHER_TEXT)
        for i, row in enumerate(logits if guess else [logits]):
            state.pos = known + i  # as if the guess were read token by token
            token = sampler.sample(forbid(row, forbidden), state.tokens, given)
            yield token, row
            if state.pos != known + i:
                raise ValueError(_OTHER_TEXT)
            if i == len(guess) or token != guess[i]:
                break
        tokens, guess = [token], []
        if draft and (room := end - state.pos - 1) > 0:
            guess = list(draft(np.append(state.tokens, token))[:room])
            size = model.config.vocab_size  # a guess outside cannot be right
            guess = guess[: next((i for i, t in enumerate(guess) if not 0 <= t < size), room)]


_IN_USE = (
    "the Generation is being read by another thread, or by the call that this one comes from: "
    "read it in one place, and begin one for each thread with generate()"
)


class Generation(Iterator[str]):
    """A text on its way: iterate for its pieces, a str for each token ("" inside a character).

    The attributes say what has happened so far; `read` gives all that is still to come. None is as
    good as leaving an argument out. Raises ValueError for arguments of another type.
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
        _check_draft(draft)
        if max_new_tokens is not None:
            max_new_tokens = whole("max_new_tokens", max_new_tokens, 0)
        words = [word for word in texts("stop", stop) if word]
        self.prompt = token_list("prompt", prompt)
        self.state = state  # has read the prompt and all tokens but the last
        self.tokens: list[int] = []  # all that were chosen, also those that ended it
        self.text = ""  # all that was yielded
        self.stop_reason: StopReason | None = None  # None while there is more to come
        # If asked for: each token's, and {token: log-probability} of the likeliest in its place.
        self.logprobs: list[float] = []
        self.top_logprobs: list[dict[int, float]] = []
        # What each token took, the first one with the prompt. Of tokens that a small network read
        # in one go, the first took it all.
        self.seconds: list[float] = []
        self._tokenizer = tokenizer.extended(model.config.vocab_size)
        self._logprobs = None if logprobs is None else whole("logprobs", logprobs, 0)
        room = model.config.seq_len - len(self.prompt) + 1
        self._limit: StopReason = "context"
        if max_new_tokens is not None and max_new_tokens <= room:
            self._limit, room = "max_new_tokens", max_new_tokens
        unread = state.reuse(self.prompt)
        end = len(self.prompt) + room - 1
        missing = self._tokenizer.missing
        source = continue_tokens(model, state, unread, sampler, end, draft, missing)
        pieces = self._decoded(source if room else iter(()))
        self._pieces = Owned(until(pieces, words) if words else pieces, Owner(_IN_USE))

    def __next__(self) -> str:
        try:
            piece = next(self._pieces)
        except StopIteration:
            self.stop_reason = self.stop_reason or "stop"
            raise
        self.text += piece
        return piece

    def read(self) -> str:
        """Generate to the end; return what was not yielded before.

        This, like going on with the iteration, raises ValueError where the logits are not finite
        and where the state was used for another text in the meantime.
        """
        return "".join(self)

    @property
    def tokens_per_second(self) -> float:
        """The rate after the first token, which waits for the prompt; nan before the second."""
        after_first = self.seconds[1:]
        return len(after_first) / sum(after_first) if after_first else math.nan

    def __repr__(self) -> str:
        return (
            f"Generation(text={brief(self.text)}, tokens={len(self.tokens)}, "
            f"stop_reason={self.stop_reason!r})"
        )

    def _decoded(self, source: Iterator[tuple[int, np.ndarray]]) -> Iterator[str]:
        """The text of each token, up to the one that ends it."""
        decoder = Decoder(self._tokenizer, self.prompt[-1])
        reason, start = self._limit, time.perf_counter()
        for token, logits in source:
            self.seconds.append(time.perf_counter() - start)
            self._note(token, logits)
            if token in self._tokenizer.ends:
                reason = "end"
                break
            yield decoder.feed(token)
            start = time.perf_counter()
        if rest := decoder.flush():
            yield rest
        self.stop_reason = reason

    def _note(self, token: int, logits: np.ndarray) -> None:
        self.tokens.append(token)
        if self._logprobs is None:
            return
        logprobs = log_softmax(logits)
        self.logprobs.append(float(logprobs[token]))
        best = likeliest(logprobs, self._logprobs)
        self.top_logprobs.append({int(i): float(logprobs[i]) for i in best})


def _check_draft(draft: Draft | None) -> None:
    if draft is not None and not callable(draft):
        kind = type(draft).__name__
        raise ValueError(f"draft must be a function of the tokens, not {kind}: DraftModel(...)?")


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
