"""Drafts of the next tokens, for `generate(draft=...)`: accepted ones cost almost nothing.

A large network reads several tokens almost as fast as one: its weights come from memory once.
"""

from __future__ import annotations

import numpy as np

from llama2np.arguments import having, none_means_default, whole
from llama2np.decoding.generation import Model
from llama2np.decoding.logits import forbid
from llama2np.model.transformer import State


class DraftModel:
    """A small model that drafts for a large one with the same tokenizer (Leviathan et al. 2023).

    It drafts `ahead` tokens, greedily. It keeps a State: only one thread can use it at a time.
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
        """Return a draft of the tokens after `tokens` (n,).

        It is shorter at the end of the small model's context, and empty if its vocabulary lacks one
        of `tokens`.
        """
        if tokens.max() >= self._model.config.vocab_size:
            return []
        left = self._model.config.seq_len - len(tokens) + 1
        unread, draft = self._state.reuse(tokens.tolist()), []
        for _ in range(min(self._ahead, left)):
            logits = forbid(self._model.forward(unread, self._state), self._missing)
            unread = [int(logits.argmax())]
            draft += unread
        return draft


class PromptLookup:
    """Drafts the tokens that followed an earlier occurrence of the last ones (Saxena 2023).

    It needs no second model, and helps if a text repeats itself or its prompt. It looks for the
    last `ngram` tokens earlier in the sequence, or for fewer if they do not occur, and proposes the
    tokens after the latest match, repeated if they are fewer than `ahead`. If only the first r
    draft tokens were accepted, the next draft has at most 2r + 1; if none, only a match of all
    `ngram` tokens counts. It remembers its last draft: use one object for each sequence.
    """

    @none_means_default
    def __init__(self, ngram: int | None = 3, ahead: int | None = 8):
        ngram, ahead = whole("ngram", ngram), whole("ahead", ahead)
        if ngram < 1 or ahead < 1:
            raise ValueError(f"ngram and ahead must be 1 or more, not {ngram} and {ahead}")
        self._ngram, self._ahead = ngram, ahead
        self._draft: list[int] = []  # the last one
        self._draft_pos = 0  # the position of its first token

    def __repr__(self) -> str:
        return f"PromptLookup(ngram={self._ngram}, ahead={self._ahead})"

    def __call__(self, tokens: np.ndarray) -> list[int]:
        """Return a draft of the tokens after `tokens` (n,); empty if the last one is new."""
        accepted, last = self._accepted(tokens), len(self._draft)
        shortest = self._ngram if last and not accepted else 1
        length = self._ahead if accepted == last else min(2 * accepted + 1, self._ahead)
        for n in range(min(self._ngram, len(tokens) - 1), shortest - 1, -1):
            windows = np.lib.stride_tricks.sliding_window_view(tokens[:-1], n)
            matches = np.flatnonzero((windows == tokens[-n:]).all(axis=1))
            if matches.size:
                followed = tokens[int(matches[-1]) + n :]
                self._draft, self._draft_pos = np.resize(followed, length).tolist(), len(tokens)
                return list(self._draft)
        return []

    def _accepted(self, tokens: np.ndarray) -> int:
        """How many tokens of the last draft are in the sequence now."""
        actual = tokens[self._draft_pos :][: len(self._draft)]
        wrong = np.flatnonzero(actual != self._draft[: len(actual)])
        return int(wrong[0]) if wrong.size else len(actual)
