"""One sequence of a batch: what it must still read, and what it has generated."""

from __future__ import annotations

import numpy as np

from llama2np.decoding.generation import limit_of, with_those_to_reread, without_bias
from llama2np.decoding.logits import forbid
from llama2np.decoding.options import Request
from llama2np.decoding.transcript import StopReason, Transcript
from llama2np.model.state import State
from llama2np.model.transformer import Transformer
from llama2np.output import brief
from llama2np.text.tokenizer import Tokenizer


class Completion:
    """A prompt and the text that follows it, in a `Batch`.

    The attributes describe what has been generated so far. The text is complete when `done`.
    """

    def __init__(self, network: Transformer, tokenizer: Tokenizer, request: Request, index: int):
        self.index = index  # how many were added to the batch before
        self.prompt = request.prompt
        self.text = ""
        self.error: Exception | None = None  # what ended it: a function of the caller, bad weights
        self.cancelled = False
        self.reused = 0  # tokens of the prompt that another sequence had read
        self._network, self._sampler = network, request.sampler
        self._transcript = Transcript(
            tokenizer, self.prompt[-1], request.stop, request.logprobs, request.ends
        )
        self._forbidden = without_bias(tokenizer.missing, request.sampler)
        self.limit, self._at_limit = limit_of(network, self.prompt, request.max_new_tokens)
        # The rest is for the Batch.
        self.state: State | None = None  # None: it waits
        self.unread = list(self.prompt)  # the tokens that the network must read next
        self.whole = False  # whether `unread` must be read in one call

    @property
    def tokens(self) -> list[int]:
        """All chosen tokens so far, the one that ended the text included."""
        return self._transcript.tokens

    @property
    def stop_reason(self) -> StopReason | None:
        """Why the text ended, as in a Generation, or "cancelled"; None before that."""
        return self._transcript.stop_reason

    @property
    def logprobs(self) -> list[float]:
        """With the option `logprobs`: the log-probability of each token."""
        return self._transcript.logprobs

    @property
    def top_logprobs(self) -> list[dict[int, float]]:
        """With the option `logprobs`: for each token {token: log-probability} of the best ones."""
        return self._transcript.top_logprobs

    @property
    def done(self) -> bool:
        """Whether the text has ended, also by an error."""
        return self.stop_reason is not None or self.error is not None

    @property
    def reading(self) -> bool:
        """Whether it still reads a part of its prompt."""
        return len(self.unread) > 1 or not self.tokens

    def cancel(self) -> None:
        """End the text with the next step of the batch. Any thread may call this."""
        self.cancelled = True

    def __repr__(self) -> str:
        return (
            f"Completion(text={brief(self.text)}, tokens={len(self.tokens)}, "
            f"stop_reason={self.stop_reason!r})"
        )

    def begin(self, state: State) -> None:
        """Go on from `state`, which has read a beginning of the text."""
        self.state = state
        self.unread = [*self.prompt, *self.tokens][state.pos :]

    def forget(self) -> None:
        """Give up the memory. `begin` reads the text again."""
        self.state = None
        self.unread = [*self.prompt, *self.tokens]

    def choose(self, logits: np.ndarray) -> str:
        """Choose the next token from logits (vocab_size,); return the text that it completes."""
        state = self.state
        assert state is not None
        allowed = forbid(logits, self._forbidden)
        token = self._sampler.sample(allowed, state.tokens, len(self.prompt))
        piece = self._transcript.add(token, logits)
        if len(self.tokens) >= self.limit:
            piece += self._transcript.finish(self._at_limit)
        self.text += piece
        self.unread = [token]
        if not self.done:
            self.unread = list(with_those_to_reread(self._network, state, self.unread))
            self.whole = len(self.unread) > 1
        return piece

    def finish(self, reason: StopReason | None = None) -> str:
        """End the text for a reason outside it, by default its limit; return the rest of it."""
        piece = self._transcript.finish(reason or self._at_limit)
        self.text += piece
        return piece
