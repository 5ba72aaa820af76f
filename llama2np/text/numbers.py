"""In place of a tokenizer, for a model without one: tokens are shown by their numbers."""

from __future__ import annotations

from llama2np.text.decoder import Shown
from llama2np.text.errors import TokenizerError
from llama2np.text.post_processors import Template
from llama2np.text.special_tokens import AddedToken
from llama2np.text.tokenizer import Tokenizer


class Numbers:
    """A vocabulary of numbers, "<17>"; it can decode, but not encode.

    where: the file or folder without a tokenizer, for messages.
    """

    like_llama2c = False
    template = Template.around()
    added: tuple[AddedToken, ...] = ()

    def __init__(self, vocab_size: int, where: str):
        self.pieces, self.scores = [b"<%d>" % i for i in range(vocab_size)], list[float]()
        self.shown = Shown(self.pieces, self.pieces)
        self._where = where

    def encode(self, text: str, special: bool | None = None) -> list[int]:
        """Raises TokenizerError, except for ""."""
        if text:
            raise TokenizerError(
                f"{self._where}: has no tokenizer, so it cannot read text: give tokens in its "
                "place, or name a tokenizer with -z FILE"
            )
        return []


def numbers(vocab_size: int, where: str) -> Tokenizer:
    """The tokenizer of a model at `where` that has none."""
    return Tokenizer(Numbers(vocab_size, where))
