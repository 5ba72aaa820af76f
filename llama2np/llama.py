"""Llama: a model and its tokenizer, for people. Knows no shapes and no arithmetic."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llama2np import checkpoint
from llama2np.chat import Chat
from llama2np.config import Config
from llama2np.generation import continue_tokens, until
from llama2np.sampler import Sampler
from llama2np.tokenizer import BOS, EOS, Decoder, Tokenizer, TokenizerError
from llama2np.transformer import State, Transformer

if TYPE_CHECKING:
    from llama2np.trace import Hook


class Llama:
    """A Llama that reads and writes text.

    >>> model = Llama.load("stories15M.bin")
    >>> for piece in model.generate("Once upon a time", max_new_tokens=64, seed=1):
    ...     print(piece, end="", flush=True)
    """

    def __init__(self, transformer: Transformer, tokenizer: Tokenizer):
        self.transformer = transformer
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, path: str | os.PathLike, tokenizer: str | os.PathLike | None = None) -> Llama:
        """Open a checkpoint and its tokenizer: `tokenizer`, else tokenizer.bin in the current
        folder, else the one beside the checkpoint.

        Raises CheckpointError, TokenizerError and OSError.
        """
        config, weights = checkpoint.load(path)
        found = tokenizer if tokenizer is not None else _find_tokenizer(path)
        return cls(Transformer(config, weights), Tokenizer.load(found, config.vocab_size))

    @property
    def config(self) -> Config:
        """The shape of the network."""
        return self.transformer.config

    def new_state(self) -> State:
        """An empty sequence for `forward`."""
        return State(self.config)

    def forward(
        self, tokens: Sequence[int] | np.ndarray, state: State, all_logits: bool = False
    ) -> np.ndarray:
        """See `Transformer.forward`: logits (vocab_size,), or (T, vocab_size) with all_logits."""
        return self.transformer.forward(tokens, state, all_logits)

    def generate(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int | None = None,
        temperature: float = 1.0,
        top_p: float = 0.9,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
    ) -> Iterator[str]:
        """Yield the text that follows `prompt`, a str for each token ("" inside a character).

        It ends at BOS or EOS, before any of the strings in `stop`, after max_new_tokens, or where
        the context ends. `temperature`, `top_p` and `seed` are those of `Sampler`.
        Raises ValueError for arguments out of range and a prompt longer than the context.
        """
        sampler = Sampler(temperature, top_p, seed)
        tokens = self.tokenizer.encode(prompt)
        room = self.config.seq_len - len(tokens) + 1
        if room < 1:
            raise ValueError(
                f"the prompt has {len(tokens):,} tokens, the context holds {self.config.seq_len:,}"
            )
        if max_new_tokens is not None and max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must be 0 or more, not {max_new_tokens}")
        count = room if max_new_tokens is None else min(max_new_tokens, room)
        pieces = self._pieces(tokens, sampler, count)
        words = [stop] if isinstance(stop, str) else stop
        return until(pieces, [word for word in words if word])

    def chat(
        self,
        system: str = "",
        *,
        temperature: float = 1.0,
        top_p: float = 0.9,
        seed: int | None = None,
        positions: int | None = None,
    ) -> Chat:
        """Begin a conversation of at most `positions` tokens in all, by default the context."""
        sampler = Sampler(temperature, top_p, seed)
        return Chat(self.transformer, self.tokenizer, sampler, system, positions)

    def with_hooks(self, *hooks: Hook) -> Llama:
        """The same model, whose arrays are shown to `hooks`: see `Trace` and `Edit`.

        It shares weights and tokenizer with this one, which is not changed: whoever else uses it
        is not disturbed, and does not slow down. Results that no Edit changes are the same bits.
        Raises ValueError for a layer that the network has not.
        """
        from llama2np.watched import Watched  # only for those who look

        return Llama(Watched(self.transformer, hooks), self.tokenizer)

    def _pieces(self, tokens: list[int], sampler: Sampler, count: int) -> Iterator[str]:
        if not count:
            return
        decoder = Decoder(self.tokenizer, tokens[-1])
        end = len(tokens) + count - 1
        for token in continue_tokens(self.transformer, self.new_state(), tokens, sampler, end):
            if token in (BOS, EOS):
                break
            yield decoder.feed(token)
        if rest := decoder.flush():
            yield rest


def _find_tokenizer(path: str | os.PathLike) -> Path:
    beside = Path(path).parent
    for folder in (Path(), beside):
        if (folder / "tokenizer.bin").is_file():
            return folder / "tokenizer.bin"
    raise TokenizerError(
        f"tokenizer.bin: not in the current folder nor in {beside}: name it with -z FILE; "
        "`make tokenizer.bin` fetches Llama 2's"
    )
