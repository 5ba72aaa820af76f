"""Llama: a network and its tokenizer, the main class for users. It has no arithmetic itself."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from llama2np.arguments import none_means_default, path_like, text, token_list, whole, wrong
from llama2np.decoding import options as checking
from llama2np.decoding.batch import Batch, complete
from llama2np.decoding.chat import Chat
from llama2np.decoding.completion import Completion
from llama2np.decoding.generation import Draft, Generation
from llama2np.decoding.options import Request, sampler_of
from llama2np.decoding.sampler import SamplingOptions
from llama2np.decoding.turns import Turns, checked_messages, turns_for
from llama2np.formats import loading
from llama2np.model.config import Config
from llama2np.model.networks import check_predicts_tokens
from llama2np.model.transformer import State, Transformer
from llama2np.output import brief
from llama2np.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack  # it is in typing since Python 3.11

    from llama2np.model.hooks import Hook

_NOT_GIVEN: Any = object()

Prompt = str | Sequence[int] | np.ndarray | Mapping[str, Any]


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
        # Options of `generate` that a folder's generation_config.json suggests; they are only a
        # hint: model.generate(prompt, **model.suggested_sampling) uses them.
        self.suggested_sampling: dict[str, float] = {}

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
        activations: str | None = None,
    ) -> Llama:
        """Open a model and its tokenizer.

        path: a folder of Hugging Face's or Meta's, a GGUF file, a .bin file, or the name of a
        bundled model, "stories-box" or "stories-box-q8". tokenizer: a file or folder; by default
        that in the model's folder or file, or the tokenizer.bin or tokenizer.model beside it, or
        else in the current folder. For a folder without a tokenizer, tokens are shown as numbers.
        engine: "compiled", or "numpy", which is slow and needs no numba. adapter: a folder with a
        LoRA adapter of PEFT's, whose products are added to the weights; the matrices that it
        changes become float32. activations: how the compiled engine rounds the inputs of matrices
        in GGUF's blocks: "int8" (the default), or "int8x2", nearly exact, the default of smollm2.
        Raises ValueError, CheckpointError, TokenizerError and OSError.
        """
        path_like("path", path)
        if tokenizer is not None:
            path_like("tokenizer", tokenizer)
        loaded = loading.load(path)
        if adapter is not None:
            path_like("adapter", adapter)
            loaded = loading.with_adapter(loaded, adapter)
        transformer = loading.transformer(path, engine, loaded, activations)
        model = cls(transformer, loaded.tokenizer(tokenizer))
        model.suggested_sampling = loaded.suggested_sampling
        return model

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

        Raises ValueError if there are none, or more than the context holds, and for a network that
        does not predict tokens.
        """
        check_predicts_tokens(self.config)
        if isinstance(prompt, str):
            tokens = self.tokenizer.encode(prompt)
            if not tokens:
                raise ValueError(
                    "the prompt is empty, and this tokenizer has no BOS to begin with: "
                    "give a text to continue (-i TEXT)"
                )
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
        sampler = sampler_of("generate", sampling, self.config.vocab_size)
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

    @overload
    def generate_batch(
        self,
        prompts: Iterable[Prompt],
        *,
        stream: Literal[False] = False,
        max_sequences: int = 32,
        max_positions: int | None = None,
        **options: Any,
    ) -> Iterator[Completion]: ...

    @overload
    def generate_batch(
        self,
        prompts: Iterable[Prompt],
        *,
        stream: Literal[True],
        max_sequences: int = 32,
        max_positions: int | None = None,
        **options: Any,
    ) -> Iterator[tuple[Completion, str]]: ...

    def generate_batch(
        self,
        prompts: Iterable[Prompt],
        *,
        stream: bool = False,
        max_sequences: int = 32,
        max_positions: int | None = None,
        **options: Any,
    ) -> Iterator[Completion] | Iterator[tuple[Completion, str]]:
        """Continue many prompts at once; yield a `Completion` for each, as soon as it is done.

        prompts: an iterable, which may be endless, of texts, of lists of tokens, or of dicts with
        "prompt" or "messages" (a conversation) and options of their own. options: those of
        `generate` but state and draft, for all prompts. Each has the text that `generate` gives it
        with the same options, to the bit.
        stream: yield (completion, piece of its text) for each token; the last one is `done`.
        max_sequences and max_positions: see `Batch`. Raises ValueError and TypeError as `generate`
        does: for options at the call, and for a prompt, with its number from 0, when it is reached.
        """
        if isinstance(prompts, str | Mapping) or not isinstance(prompts, Iterable):
            raise wrong("prompts", "a list of prompts", prompts)
        batch = Batch(
            self.transformer,
            self.tokenizer,
            max_sequences=max_sequences,
            max_positions=max_positions,
        )
        self.request([0], options)  # checks them
        news = complete(batch, self._requests(prompts, options))
        return news if stream else (each for each, _ in news if each.done)

    def _requests(self, prompts: Iterable[Prompt], options: dict[str, Any]) -> Iterator[Request]:
        for i, prompt in enumerate(prompts):
            try:
                yield self.request(prompt, options)
            except (ValueError, TypeError) as error:
                raise type(error)(f"prompt {i}: {error}") from None

    def request(self, prompt: Prompt, options: dict[str, Any]) -> Request:
        """A prompt and options of `generate`, checked, for `Batch.add`.

        prompt: a text, tokens, or a dict with "prompt" or "messages" (a conversation) and options
        of its own. Raises ValueError, and TypeError for an option that does not exist.
        """
        return self.requests(prompt, [options])[0]

    def requests(self, prompt: Prompt, options: Sequence[dict[str, Any]]) -> list[Request]:
        """`request` for several options: a text is encoded once."""
        own = dict(prompt) if isinstance(prompt, Mapping) else {"prompt": prompt}
        if "messages" in own and "prompt" in own:
            raise ValueError("expected a prompt or messages, found both")
        ends = None
        if "messages" in own:
            own["prompt"], ends = self._conversation(own.pop("messages"))
        tokens, size = self.prompt_tokens(own.pop("prompt", "")), self.config.vocab_size
        made = [checking.request("generate_batch", tokens, each | own, size) for each in options]
        if ends is None:
            return made
        if self._turns.draws:  # as Chat does
            for each in made:
                each.sampler.skip(len(tokens) - 1)
        return [replace(each, ends=ends) for each in made]

    def _conversation(self, messages: Any) -> tuple[list[int], frozenset[int]]:
        """The tokens of a conversation in the model's chat template, and those that end an answer.

        Raises ValueError if the last message is not the user's, and for a model without a template.
        """
        checked = checked_messages(messages)
        if not checked or checked[-1]["role"] != "user":
            raise ValueError("the last message must be the user's")
        return self._turns.prompt(checked, None), self._turns.ends

    @cached_property
    def _turns(self) -> Turns:
        return turns_for(self.tokenizer, None)

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
        check_predicts_tokens(self.config)
        if positions is not None and (positions := whole("positions", positions)) < 0:
            raise ValueError(f"positions must be 0 (the context) or more, not {positions}")
        sampler = sampler_of("chat", sampling, self.config.vocab_size)
        system = text("system", system)
        parts = self.transformer, self.tokenizer, sampler
        return Chat(*parts, system, positions, messages, template)

    def with_hooks(self, *hooks: Hook) -> Llama:
        """A copy of this model that passes its arrays to `hooks`: see `Trace` and `Edit`.

        It shares weights and tokenizer with this one, which is not changed and does not slow down.
        Results that no Edit changes are the same to the bit. Raises ValueError for a layer that the
        network does not have.
        """
        twin = Llama(self.transformer.with_hooks(hooks), self.tokenizer)
        twin.suggested_sampling = self.suggested_sampling
        return twin
