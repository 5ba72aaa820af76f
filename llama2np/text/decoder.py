"""Tokens to text, as a stream: what is shown for each token, and split characters put together."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama2np.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Shown:
    """The bytes that are shown for each token. A character may be spread over several tokens.

    Every kind of tokenizer has such a table, so that a stream of tokens is decoded in one way.
    """

    texts: list[bytes]  # for a token inside a text
    # For a token at the beginning; the same list if `strips` says enough.
    first_texts: list[bytes]
    strips: bool = False  # whether a token at the beginning is shown without its first space
    # Whether a text also begins where no BOS was; after a BOS it always does.
    begins: bool = True
    # What ends the beginning: "token", the first token; "text", the first one with a text in
    # `texts`; "shown", the first one of which something is shown.
    until: str = "text"
    # Whether a text begins after every BOS, or only at the first token.
    again: bool = False

    def extended(self, more: Iterable[bytes]) -> Shown:
        """This table with more tokens."""
        more = list(more)
        texts = self.texts + more
        first = texts if self.first_texts is self.texts else self.first_texts + more
        return replace(self, texts=texts, first_texts=first)


class Decoder:
    """Decodes a stream of tokens. A character split over several tokens comes with the last one.

    `previous` is the token before the first one, if there is one. Bytes that are not UTF-8 become
    U+FFFD. skip_special: show nothing for special tokens, such as "<|im_end|>".
    """

    def __init__(
        self, tokenizer: Tokenizer, previous: int | None = None, skip_special: bool = False
    ):
        self._tokenizer, self._shown = tokenizer, tokenizer.shown
        # Whether the next piece begins a text: then its first space does not belong to the text.
        self._first = previous == tokenizer.bos_id or (previous is None and self._shown.begins)
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """The text that `token` completes; "" in the middle of a character.

        Raises ValueError for a token outside the vocabulary.
        """
        table = self._shown
        if not 0 <= token < len(table.texts):
            last = len(table.texts) - 1
            raise ValueError(f"token {token} is not in the vocabulary of 0 to {last}")
        if table.again and token == self._tokenizer.bos_id:
            self._first = True
            return self._utf8.decode(table.texts[token])
        if token in self._skipped:
            return ""
        text = shown = table.texts[token]
        if self._first:
            shown = table.first_texts[token]
            if table.strips:  # the space that encode put there
                shown = shown.removeprefix(b" ")
            seen = shown if table.until == "shown" else text
            ended = table.until == "token" or (table.again and token == self._tokenizer.eos_id)
            self._first = not (seen or ended)
        return self._utf8.decode(shown)

    def flush(self) -> str:
        """The rest at the end of the tokens: U+FFFD for an incomplete character, else ""."""
        return self._utf8.decode(b"", final=True)
