"""From a prompt to a stream of tokens, and from tokens to text. A model needs only `forward`."""

from __future__ import annotations

import math
import time
from collections import deque
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
    forbidden = np.array([token for token in missing if token not in sampler.logit_bias], np.int64)
    prompt_length = state.pos + len(tokens)
    drafted: list[int] = []
    # A small network generates several tokens in one call: a draft that is always accepted.
    max_count = getattr(model, "max_greedy_tokens", 1) if sampler.greedy and not draft else 1
    while state.pos + len(tokens) <= end:
        known = state.pos + len(tokens)
        tokens = _with_those_to_reread(model, state, tokens, len(drafted))
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


def _with_those_to_reread(
    model: Model, state: State, tokens: Sequence[int], drafted: int
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
    generated so far; `read` returns the rest. If `tokens` or `text` is asked for before the first
    piece, all is generated. None means the default of an argument. Raises ValueError for arguments
    of another type.
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
        self.state = state  # it has read the prompt and all tokens but the last
        self._tokens: list[int] = []
        self._text = ""
        self._begun = False
        self._ahead: deque[str] = deque()  # pieces that have been generated, but not yielded
        self.stop_reason: StopReason | None = None  # None until the text has ended
        # With the argument `logprobs`: the log-probability of each token, and those of the most
        # probable tokens at its position as {token: log-probability}.
        self.logprobs: list[float] = []
        self.top_logprobs: list[dict[int, float]] = []
        # The time of each token; that of the first includes reading the prompt. If one call
        # generates several tokens, its whole time counts for the first of them.
        self.seconds: list[float] = []
        self._tokenizer = tokenizer.extended(model.config.vocab_size)
        self._logprobs = None if logprobs is None else whole("logprobs", logprobs, 0)
        limit = model.config.seq_len - len(self.prompt) + 1
        self._limit: StopReason = "context"
        if max_new_tokens is not None and max_new_tokens <= limit:
            self._limit, limit = "max_new_tokens", max_new_tokens
        unread = state.reuse(self.prompt)
        end = len(self.prompt) + limit - 1
        missing = self._tokenizer.missing
        source = continue_tokens(model, state, unread, sampler, end, draft, missing)
        pieces = self._decoded(source if limit else iter(()))
        self._pieces = Owned(until(pieces, words) if words else pieces, Owner(_IN_USE))

    def __next__(self) -> str:
        return self._ahead.popleft() if self._ahead else self._generated()

    def _generated(self) -> str:
        self._begun = True
        try:
            piece = next(self._pieces)
        except StopIteration:
            self.stop_reason = self.stop_reason or "stop"
            raise
        self._text += piece
        return piece

    @property
    def tokens(self) -> list[int]:
        """All chosen tokens so far, the one that ended the text included."""
        self._generate_all_unless_begun()
        return self._tokens

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
            f"Generation(text={brief(self._text)}, tokens={len(self._tokens)}, "
            f"stop_reason={self.stop_reason!r})"
        )

    def _decoded(self, source: Iterator[tuple[int, np.ndarray]]) -> Iterator[str]:
        """The text of each token before the one that ends the text."""
        decoder = Decoder(self._tokenizer, self.prompt[-1], skip_special=True)
        reason, start = self._limit, time.perf_counter()
        for token, logits in source:
            self.seconds.append(time.perf_counter() - start)
            self._append(token, logits)
            if token in self._tokenizer.ends:
                reason = "end"
                break
            yield decoder.feed(token)
            start = time.perf_counter()
        if rest := decoder.flush():
            yield rest
        self.stop_reason = reason

    def _append(self, token: int, logits: np.ndarray) -> None:
        self._tokens.append(token)
        if self._logprobs is None:
            return
        logprobs = log_softmax(logits)
        self.logprobs.append(float(logprobs[token]))
        best = likeliest(logprobs, self._logprobs)
        self.top_logprobs.append({int(i): float(logprobs[i]) for i in best})


def _check_draft(draft: Draft | None) -> None:
    if draft is not None and not callable(draft):
        kind = type(draft).__name__
        raise ValueError(
            f"draft must be a function of the tokens, not {kind}; did you mean DraftModel(...)?"
        )


def until(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """Yield the text before the first of the strings in `stop`.

    The end of a piece is held back while it may be the beginning of such a string.
    """
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
    """The length of the longest suffix of `text` that is a prefix of `word`."""
    return next((n for n in range(min(len(word), len(text)), 0, -1) if text.endswith(word[:n])), 0)
