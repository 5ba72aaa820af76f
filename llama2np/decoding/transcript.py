"""The text of a sequence of chosen tokens, piece by piece, and where the text ends."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np

from llama2np.arguments import texts, whole
from llama2np.decoding.logits import log_softmax, top_tokens
from llama2np.text.tokenizer import Decoder, Tokenizer

StopReason = Literal["end", "stop", "max_new_tokens", "context", "cancelled"]


class Transcript:
    """Chosen tokens become text here, one after the other, until the text has ended.

    previous: the token before the first one. ends: the tokens that end a text, by default those of
    the tokenizer. stop: strings before which a text ends. logprobs: also keep log-probabilities
    of each token and of the `logprobs` most probable ones. Raises ValueError for arguments of
    another type.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        previous: int,
        stop: str | Sequence[str] = (),
        logprobs: int | None = None,
        ends: Collection[int] | None = None,
    ):
        self.tokens: list[int] = []  # all of them, the one that ended the text included
        self.logprobs: list[float] = []
        self.top_logprobs: list[dict[int, float]] = []
        self.stop_reason: StopReason | None = None  # None until the text has ended
        self._stop = StopStrings([word for word in texts("stop", stop) if word])
        self._logprobs = None if logprobs is None else whole("logprobs", logprobs, 0)
        self._decoder = Decoder(tokenizer, previous, skip_special=True)
        self._ends = tokenizer.ends if ends is None else ends

    def add(self, token: int, logits: np.ndarray) -> str:
        """Record a token and the logits (vocab_size,) that it was chosen from.

        Returns the text that it completes, "" inside a character, and while the text may be the
        beginning of a stop string. If the token ends the text, `stop_reason` is set, and the
        returned text is the rest.
        """
        self.tokens.append(token)
        if self._logprobs is not None:
            logprobs = log_softmax(logits)
            self.logprobs.append(float(logprobs[token]))
            best = top_tokens(logprobs, self._logprobs)
            self.top_logprobs.append({int(i): float(logprobs[i]) for i in best})
        if token in self._ends:
            return self.finish("end")
        piece = self._stop.feed(self._decoder.feed(token))
        if self._stop.found:
            self.stop_reason = "stop"
        return piece

    def finish(self, reason: StopReason) -> str:
        """End the text; return its rest. Nothing changes if it has ended already."""
        if self.stop_reason is not None:
            return ""
        rest = self._stop.feed(self._decoder.flush())
        self.stop_reason = "stop" if self._stop.found else reason
        return rest + self._stop.flush()


class StopStrings:
    """Lets text through up to the first of the strings `words`.

    The end of the text is held back while it may be the beginning of such a string.
    """

    def __init__(self, words: Sequence[str]):
        self._words = words
        self._held = ""
        self.found = False

    def feed(self, piece: str) -> str:
        """Add text; return what certainly comes before a stop string."""
        if not self._words:
            return piece
        held = self._held + piece
        found = [at for word in self._words if (at := held.find(word)) >= 0]
        if found:
            self.found, self._held = True, ""
            return held[: min(found)]
        keep = max(_overlap(held, word) for word in self._words)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def flush(self) -> str:
        """Return what is held back: the text has ended."""
        held, self._held = self._held, ""
        return held


def until(pieces: Iterable[str], words: Sequence[str]) -> Iterator[str]:
    """Yield the text before the first of the strings in `words`."""
    strings = StopStrings(words)
    for piece in pieces:
        yield strings.feed(piece)
        if strings.found:
            return
    if rest := strings.flush():
        yield rest


def _overlap(text: str, word: str) -> int:
    """The length of the longest suffix of `text` that is a prefix of `word`."""
    return next((n for n in range(min(len(word), len(text)), 0, -1) if text.endswith(word[:n])), 0)
