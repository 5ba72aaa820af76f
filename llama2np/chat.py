"""A conversation in the template of Llama 2's chat models, over one running State."""

from __future__ import annotations

from collections.abc import Iterator

from llama2np.generation import continue_tokens
from llama2np.sampler import Sampler
from llama2np.tokenizer import EOS, Decoder, Tokenizer
from llama2np.model.transformer import State, Transformer


class Chat:
    """Turns of user and assistant; the network remembers them all in its KV cache.

    Template: Meta's llama, `generation.py`. Each turn begins with BOS, each answer ends with EOS.
    """

    def __init__(
        self,
        transformer: Transformer,
        tokenizer: Tokenizer,
        sampler: Sampler,
        system: str = "",
        positions: int | None = None,
    ):
        self._transformer = transformer
        self._tokenizer = tokenizer
        self._sampler = sampler
        self._system = system
        self._state = State(transformer.config)
        self._tokens: list[int] = []  # all that was said; those from state.pos on are unread
        self.positions = min(positions or transformer.config.seq_len, transformer.config.seq_len)

    @property
    def full(self) -> bool:
        """Whether the last answer ended because the context did."""
        return self._state.pos >= self.positions

    def send(self, text: str) -> Iterator[str]:
        """Say `text`; yield the answer, a str for each token.

        Raises ValueError, and forgets the text, if the context has no room left for it. An answer
        that is abandoned midway counts as ended there.
        """
        said = self._render(text)
        unread = len(self._tokens) - self._state.pos + len(said)
        if self._state.pos + unread > self.positions:
            raise ValueError(
                f"the context of {self.positions} positions is full: this turn needs {unread}, "
                f"{self.positions - self._state.pos} are left"
            )
        self._tokens += said
        return self._answer()

    def _render(self, text: str) -> list[int]:
        if not self._tokens and self._system:
            text = f"<<SYS>>\n{self._system}\n<</SYS>>\n\n{text}"
        said = self._tokenizer.encode(f"[INST] {text} [/INST]")
        interrupted = self._tokens and self._tokens[-1] != EOS
        return [EOS, *said] if interrupted else said

    def _answer(self) -> Iterator[str]:
        unread = self._tokens[self._state.pos :]
        # run.c draws a random number at every position, those of the prompt included.
        self._sampler.skip(len(unread) - 1)
        decoder = Decoder(self._tokenizer, self._tokens[-1])
        for token, _ in continue_tokens(
            self._transformer, self._state, unread, self._sampler, self.positions
        ):
            self._tokens.append(token)
            if token == EOS:
                break
            yield decoder.feed(token)
        if rest := decoder.flush():
            yield rest
