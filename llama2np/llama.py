"""Llama: a model and its tokenizer, for people. Knows no shapes and no arithmetic."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llama2np import box, checkpoint
from llama2np.chat import Chat
from llama2np.model.config import Config
from llama2np.generation import Draft, Generation
from llama2np.sampler import Sampler, SamplingOptions
from llama2np.tokenizer import Tokenizer, TokenizerError
from llama2np.model.transformer import State, Transformer

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing from Python 3.11 on

    from llama2np.model.hooks import Hook


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
    def load(
        cls, path: str | os.PathLike[str], tokenizer: str | os.PathLike[str] | None = None
    ) -> Llama:
        """Open a checkpoint and its tokenizer: `tokenizer`, else tokenizer.bin in the current
        folder, else the one beside the checkpoint.

        path: a .bin file, or the name of a model in the box, "stories-box" or "stories-box-q8",
        which stands for their tokenizer, too. Raises CheckpointError, TokenizerError and OSError.
        """
        config, weights = checkpoint.load(path)
        found = _tokenizer_of(path, tokenizer)
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
        """Read `tokens` (T,) at state.pos and on; return float32 logits of what follows the last.

        Of every token with `all_logits`: (T, vocab_size), else (vocab_size,). Raises ValueError
        for a token outside the vocabulary, none at all, or more than the context has room for.
        """
        return self.transformer.forward(tokens, state, all_logits)

    def generate(
        self,
        prompt: str | Sequence[int] = "",
        *,
        max_new_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        logprobs: int | None = None,
        state: State | None = None,
        draft: Draft | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Generation:
        """Yield the text that follows `prompt`, a str for each token ("" inside a character).

        prompt: text, or its tokens. It ends at BOS or EOS, before any of the strings in `stop`,
        after max_new_tokens, or where the context ends; the `Generation` that is returned knows
        which, and the tokens, their times, and with `logprobs` their log-probabilities in the
        model's own distribution and those of the `logprobs` likeliest.
        state: what it has read of `prompt` before is not read again, the rest is forgotten; it has
        read all but the last token afterwards. draft: see `continue_tokens`. sampling: the fields
        of `Sampler`, such as temperature=0.8.
        Raises ValueError for arguments out of range and a prompt longer than the context.
        """
        sampler = _sampler("generate", sampling)
        if draft is not None and not callable(draft):
            kind = type(draft).__name__
            raise ValueError(
                f"draft must be a function of the tokens, not {kind}: DraftModel(...)?"
            )
        tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not 1 <= len(tokens) <= self.config.seq_len:
            raise ValueError(
                f"the prompt has {len(tokens):,} tokens, the context holds {self.config.seq_len:,}"
            )
        for name, value in (("max_new_tokens", max_new_tokens), ("logprobs", logprobs)):
            if value is not None and value < 0:
                raise ValueError(f"{name} must be 0 or more, not {value}")
        words = [stop] if isinstance(stop, str) else stop
        return Generation(
            self.transformer,
            self.tokenizer,
            tokens,
            sampler,
            state=self.new_state() if state is None else state,
            max_new_tokens=max_new_tokens,
            stop=[word for word in words if word],
            logprobs=logprobs,
            draft=draft,
        )

    def chat(
        self, system: str = "", *, positions: int | None = None, **sampling: Unpack[SamplingOptions]
    ) -> Chat:
        """Begin a conversation of at most `positions` tokens in all, by default the context.

        sampling: the fields of `Sampler`. Raises ValueError for values out of range.
        """
        if positions is not None and positions < 0:
            raise ValueError(f"positions must be 0 (the context) or more, not {positions}")
        return Chat(self.transformer, self.tokenizer, _sampler("chat", sampling), system, positions)

    def with_hooks(self, *hooks: Hook) -> Llama:
        """The same model, whose arrays are shown to `hooks`: see `Trace` and `Edit`.

        It shares weights and tokenizer with this one, which is not changed: whoever else uses it
        is not disturbed, and does not slow down. Results that no Edit changes are the same bits.
        Raises ValueError for a layer that the network has not.
        """
        return Llama(self.transformer.with_hooks(hooks), self.tokenizer)


def _sampler(caller: str, options: SamplingOptions) -> Sampler:
    """Raises TypeError in the caller's name for an option that neither has."""
    if unknown := options.keys() - SamplingOptions.__annotations__.keys():
        known = ", ".join(SamplingOptions.__annotations__)
        raise TypeError(f"{caller}() has no option {min(unknown)!r}; those of sampling are {known}")
    return Sampler(**options)


def _tokenizer_of(
    path: str | os.PathLike[str], named: str | os.PathLike[str] | None
) -> str | os.PathLike[str]:
    if box.in_box(path if named is None else named):
        return box.TOKENIZER
    if named is not None:
        return named
    beside = Path(path).parent
    for folder in (Path(), beside):
        if (folder / "tokenizer.bin").is_file():
            return folder / "tokenizer.bin"
    raise TokenizerError(
        f"tokenizer.bin: not in the current folder nor in {beside}: name it with -z FILE; "
        "`make tokenizer.bin` fetches Llama 2's"
    )
