"""Guesses at the tokens that follow, for `generate(draft=...)`: right ones cost almost nothing.

A large network reads several tokens hardly slower than one: its weights come from memory once.
"""

from __future__ import annotations

import numpy as np

from llama2np.arguments import having, none_means_default, whole
from llama2np.decoding.generation import Model
from llama2np.decoding.logits import forbid
from llama2np.model.transformer import State


class DraftModel:
    """A small model that guesses for a large one with the same tokenizer (Leviathan et al. 2023).

    It guesses `ahead` tokens, greedily. It keeps a State: one thread at a time.
    """

    @none_means_default
    def __init__(self, model: Model, ahead: int | None = 4):
        ahead = whole("ahead", ahead, 1)
        having("model", model, "a Llama or a Transformer", "forward", "config")
        self._model, self._ahead = model, ahead
        self._state = State(model.config)
        tokenizer = getattr(model, "tokenizer", None)  # a Llama has one
        self._missing = () if tokenizer is None else tokenizer.missing

    def __repr__(self) -> str:
        return f"DraftModel({self._model!r}, ahead={self._ahead})"

    def __call__(self, tokens: np.ndarray) -> list[int]:
        """Guess what follows `tokens` (n,). Nothing where its context or its vocabulary ends."""
        if tokens.max() >= self._model.config.vocab_size:
            return []
        room = self._model.config.seq_len - len(tokens) + 1
        unread, guess = self._state.reuse(tokens.tolist()), []
        for _ in range(min(self._ahead, room)):
            logits = forbid(self._model.forward(unread, self._state), self._missing)
            unread = [int(logits.argmax())]
            guess += unread
        return guess


class PromptLookup:
    """What followed the last few tokens when they stood in the sequence before (Saxena 2023).

    It needs no second model, and helps where a text repeats itself or its prompt. Of the places
    where the last `ngram` tokens stand, or else fewer, it takes the latest; where what followed
    there ends, it goes round. After a guess that was not right to its end, the next has at most
    twice as many tokens as were right, and one more; where none was, it wants all of `ngram` to be
    the same. It remembers its last guess: one sequence at a time.
    """

    @none_means_default
    def __init__(self, ngram: int | None = 3, ahead: int | None = 8):
        ngram, ahead = whole("ngram", ngram), whole("ahead", ahead)
        if ngram < 1 or ahead < 1:
            raise ValueError(f"ngram and ahead must be 1 or more, not {ngram} and {ahead}")
        self._ngram, self._ahead = ngram, ahead
        self._guess: list[int] = []  # the last one,
        self._at = 0  # and where it began

    def __repr__(self) -> str:
        return f"PromptLookup(ngram={self._ngram}, ahead={self._ahead})"

    def __call__(self, tokens: np.ndarray) -> list[int]:
        """Guess what follows `tokens` (n,). Nothing where the last of them is new."""
        right, last = self._right(tokens), len(self._guess)
        least = self._ngram if last and not right else 1
        ahead = self._ahead if right == last else min(2 * right + 1, self._ahead)
        for n in range(min(self._ngram, len(tokens) - 1), least - 1, -1):
            windows = np.lib.stride_tricks.sliding_window_view(tokens[:-1], n)
            places = np.flatnonzero((windows == tokens[-n:]).all(axis=1))
            if places.size:
                followed = tokens[int(places[-1]) + n :]
                self._guess, self._at = np.resize(followed, ahead).tolist(), len(tokens)
                return list(self._guess)
        return []

    def _right(self, tokens: np.ndarray) -> int:
        """How many tokens of the last guess came true."""
        came = tokens[self._at :][: len(self._guess)]
        wrong = np.flatnonzero(came != self._guess[: len(came)])
        return int(wrong[0]) if wrong.size else len(came)
