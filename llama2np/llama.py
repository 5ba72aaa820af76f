"""Llama: a network and its tokenizer, the main class for users. It has no arithmetic itself."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llama2np import advice
from llama2np.arguments import none_means_default, path_like, text, token_list, whole
from llama2np.decoding.chat import Chat
from llama2np.decoding.generation import Draft, Generation
from llama2np.decoding.logits import check_bias
from llama2np.decoding.sampler import Sampler, SamplingOptions
from llama2np.formats import loading
from llama2np.model.config import Config
from llama2np.model.transformer import State, Transformer
from llama2np.output import brief
from llama2np.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack  # it is in typing since Python 3.11

    from llama2np.model.hooks import Hook

_NOT_GIVEN: Any = object()


class Llama:
    """A network and its tokenizer, which read and write text.

    >>> model = Llama.load("stories15M.bin")
    >>> for piece in model.generate("Once upon a time", max_new_tokens=64, seed=1):
    ...     print(piece, end="", flush=True)
    """

    def __init__(self, transformer: Transformer, tokenizer: Tokenizer = _NOT_GIVEN):
        if isinstance(transformer, (str, os.PathLike)):
            raise TypeError(
                "Llama() takes a Transformer and a Tokenizer; a model is opened by its name or "
                f"path with Llama.load({brief(transformer)})"
            )
        if tokenizer is _NOT_GIVEN:
            raise TypeError("Llama() takes a Transformer and a Tokenizer; Llama.load opens both")
        self.transformer = transformer
        # A network may have more rows than its tokenizer has pieces: for padding and added tokens.
        rows = transformer.config.vocab_size
        self.tokenizer = tokenizer and tokenizer.extended(rows)  # None for a network without one

    def __repr__(self) -> str:
        c = self.config
        return (
            f"Llama({c.n_layers} layers of dim {c.dim}, context {c.seq_len:,}, "
            f"vocabulary {c.vocab_size:,})"
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        tokenizer: str | os.PathLike[str] | None = None,
        engine: str = "compiled",
        adapter: str | os.PathLike[str] | None = None,
    ) -> Llama:
        """Open a model and its tokenizer.

        path: a folder of Hugging Face's or Meta's, a GGUF file, a .bin file, or the name of a
        bundled model, "stories-box" or "stories-box-q8". tokenizer: a file or folder; by default
        that in the model's folder or file, or the tokenizer.bin or tokenizer.model beside it, or
        else in the current folder. For a folder without a tokenizer, tokens are shown as numbers.
        engine: "compiled", or "numpy", which is slow and needs no numba. adapter: a folder with a
        LoRA adapter of PEFT's, whose products are added to the weights; the matrices that it
        changes become float32. Raises ValueError, CheckpointError, TokenizerError and OSError.
        """
        path_like("path", path)
        if tokenizer is not None:
            path_like("tokenizer", tokenizer)
        loaded = loading.load(path)
        if adapter is not None:
            path_like("adapter", adapter)
            loaded = loading.with_adapter(loaded, adapter)
        transformer = loading.transformer(path, engine, loaded)
        return cls(transformer, loaded.tokenizer(tokenizer))

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
        """Read `tokens` (T,) at state.pos; return float32 logits of the next token.

        They are (vocab_size,) after the last token, or with `all_logits` (T, vocab_size) after each
        token. Raises ValueError for a token outside the vocabulary, for no tokens, or for more than
        fit into the context.
        """
        return self.transformer.forward(tokens, state, all_logits)

    def prompt_tokens(self, prompt: str | Sequence[int] | np.ndarray | None) -> list[int]:
        """The tokens of a prompt, which is a text or a sequence of tokens.

        Raises ValueError if there are none, or more than the context holds.
        """
        if isinstance(prompt, str):
            tokens = self.tokenizer.encode(prompt)
            if not tokens:
                raise ValueError("the prompt is empty, and this tokenizer has no BOS to begin with")
        else:
            tokens = token_list("prompt", prompt, self.config.vocab_size, "a str or ")
        if not 1 <= len(tokens) <= self.config.seq_len:
            raise ValueError(
                f"the prompt has {len(tokens):,} tokens, the context holds {self.config.seq_len:,}"
            )
        return tokens

    @none_means_default
    def generate(
        self,
        prompt: str | Sequence[int] | np.ndarray | None = "",
        *,
        max_new_tokens: int | None = None,
        stop: str | Sequence[str] | None = (),
        logprobs: int | None = None,
        state: State | None = None,
        draft: Draft | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Generation:
        """Yield the text after `prompt`, a str for each token ("" inside a character).

        prompt: a text, or its tokens. The text ends at BOS or EOS, before any of the strings in
        `stop`, after max_new_tokens, or at the end of the context. The returned `Generation` has
        the reason, the tokens and their times. With `logprobs` it also has, in the model's own
        distribution, the log-probabilities of the tokens and of the `logprobs` most probable ones.
        state: if it has read a beginning of `prompt`, only the rest is read, and its other tokens
        are dropped; afterwards it has read all but the last token. draft: see `continue_tokens`.
        sampling: the fields of `Sampler`, such as temperature=0.8. None means the default of an
        argument. Raises ValueError, at the call, for arguments of another type or out of range, and
        for a prompt longer than the context.
        """
        sampler = _sampler("generate", sampling, self.config.vocab_size)
        tokens = self.prompt_tokens(prompt)
        return Generation(
            self.transformer,
            self.tokenizer,
            tokens,
            sampler,
            state=self.new_state() if state is None else state,
            max_new_tokens=max_new_tokens,
            stop=stop,
            logprobs=logprobs,
            draft=draft,
        )

    @none_means_default
    def chat(
        self,
        system: str | None = "",
        *,
        positions: int | None = None,
        messages: Sequence[Mapping[str, str]] | None = (),
        template: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Chat:
        """Begin a conversation of at most `positions` tokens in total, by default the context.

        messages: a conversation to be continued, [{"role": "user", "content": "Hi"}, ...].
        template: a chat template, by default the model's own; llama2.c's files have Llama 2's.
        sampling: the fields of `Sampler`. None means the default of an argument. Raises ValueError
        for arguments of another type or out of range.
        """
        if positions is not None and (positions := whole("positions", positions)) < 0:
            raise ValueError(f"positions must be 0 (the context) or more, not {positions}")
        sampler = _sampler("chat", sampling, self.config.vocab_size)
        system = text("system", system)
        parts = self.transformer, self.tokenizer, sampler
        return Chat(*parts, system, positions, messages, template)

    def with_hooks(self, *hooks: Hook) -> Llama:
        """A copy of this model that passes its arrays to `hooks`: see `Trace` and `Edit`.

        It shares weights and tokenizer with this one, which is not changed and does not slow down.
        Results that no Edit changes are the same to the bit. Raises ValueError for a layer that the
        network does not have.
        """
        return Llama(self.transformer.with_hooks(hooks), self.tokenizer)


def _sampler(caller: str, options: SamplingOptions, vocab_size: int) -> Sampler:
    """A Sampler. Raises ValueError, and for an unknown option TypeError in the caller's name."""
    if unknown := options.keys() - SamplingOptions.__annotations__.keys():
        known, first = SamplingOptions.__annotations__, min(unknown)
        raise TypeError(
            f"{caller}() has no option {first!r}; those of sampling are {', '.join(known)}"
            f"{advice.did_you_mean(first, known)}"
        )
    sampler = Sampler(**options)  # type: ignore[arg-type]  # None is for its defaults
    check_bias(sampler.logit_bias, vocab_size)
    return sampler
