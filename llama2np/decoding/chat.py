"""A conversation in the template of Llama 2's chat models, over one running State."""

from __future__ import annotations

from collections.abc import Iterator

from llama2np import arguments
from llama2np.decoding.generation import continue_tokens
from llama2np.decoding.sampler import Sampler
from llama2np.model.transformer import State, Transformer
from llama2np.owner import Owned, Owner
from llama2np.text.tokenizer import Decoder, Tokenizer

_IN_USE = (
    "the Chat is answering in another thread, or in the function that made this call: "
    "read that answer first, or begin a Chat for each thread with model.chat()"
)


class Chat:
    """Turns of user and assistant; the KV cache holds all of them.

    The template is that of `generation.py` in Meta's llama. Each turn begins with BOS, and each
    answer ends with EOS, if the tokenizer has them. Only one thread can use a Chat at a time;
    another one gets a ValueError.
    """

    @arguments.none_means_default
    def __init__(
        self,
        transformer: Transformer,
        tokenizer: Tokenizer,
        sampler: Sampler,
        system: str | None = "",
        positions: int | None = None,
    ):
        self._transformer = transformer
        self._tokenizer = tokenizer.extended(transformer.config.vocab_size)
        self._sampler = sampler
        self._system = arguments.text("system", system)
        self._owner = Owner(_IN_USE)
        self._state = State(transformer.config)
        self._tokens: list[int] = []  # of all turns; the network has read the first state.pos
        self._turns = 0
        most = transformer.config.seq_len
        self.positions = min(arguments.whole("positions", positions or most, 1), most)

    def __repr__(self) -> str:
        return f"Chat({self._state.pos:,} of {self.positions:,} positions read)"

    @property
    def full(self) -> bool:
        """Whether the last answer ended because the context is full."""
        return self._state.pos >= self.positions

    def send(self, text: str) -> Iterator[str]:
        """Add the user's `text`; yield the answer, a str for each token.

        Raises ValueError, and does not add the text, if it does not fit into the context, and if
        another thread uses this Chat. An answer that is not read to its end is cut off there:
        reading it after the next `send` raises ValueError.
        """
        with self._owner:
            self._add(arguments.text("text", text))
            self._turns += 1
            return Owned(self._answer(self._turns), self._owner)

    def _add(self, text: str) -> None:
        turn = self._render(text)
        unread = len(self._tokens) - self._state.pos + len(turn)
        if self._state.pos + unread > self.positions:
            raise ValueError(
                f"the context of {self.positions} positions is full: this turn needs {unread}, "
                f"{self.positions - self._state.pos} are left"
            )
        self._tokens += turn

    def _render(self, text: str) -> list[int]:
        if not self._tokens and self._system:
            text = f"<<SYS>>\n{self._system}\n<</SYS>>\n\n{text}"
        turn = self._tokenizer.encode(f"[INST] {text} [/INST]")
        eos = self._tokenizer.eos_id
        interrupted = self._tokens and self._tokens[-1] != eos
        return [eos, *turn] if interrupted and eos is not None else turn

    def _answer(self, turn: int) -> Iterator[str]:
        self._check(turn)
        unread = self._tokens[self._state.pos :]
        # run.c draws a random number at every position, those of the prompt included.
        self._sampler.skip(len(unread) - 1)
        decoder = Decoder(self._tokenizer, self._tokens[-1])
        for token, _ in continue_tokens(
            self._transformer,
            self._state,
            unread,
            self._sampler,
            self.positions,
            missing=self._tokenizer.missing,
        ):
            self._tokens.append(token)
            if token == self._tokenizer.eos_id:
                break
            yield decoder.feed(token)
            self._check(turn)
        if rest := decoder.flush():
            yield rest

    def _check(self, turn: int) -> None:
        if turn != self._turns:
            raise ValueError(
                "this answer ended with the next send(): read it to its end before that"
            )
