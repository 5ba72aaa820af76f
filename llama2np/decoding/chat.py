"""A conversation with one State: its messages, its answers, and a file of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from llama2np import arguments
from llama2np.atomic import write_file
from llama2np.decoding.generation import continue_tokens
from llama2np.decoding.sampler import Sampler
from llama2np.decoding.turns import Message, checked_messages, turns_for
from llama2np.files import open_regular, read_at_most
from llama2np.model.networks import check_predicts_tokens
from llama2np.model.transformer import State, Transformer
from llama2np.output import printable
from llama2np.owner import Owned, Owner
from llama2np.text.tokenizer import Decoder, Tokenizer

_IN_USE = (
    "the Chat is answering in another thread, or in the function that made this call: "
    "read that answer first, or begin a Chat for each thread with model.chat()"
)
_LARGEST_FILE = 2**24  # bytes; a context of a million tokens has 4 MB


class Chat:
    """Turns of user and assistant; the KV cache holds all of them.

    The template is the model's own, or Llama 2's for llama2.c's files. Only what is new in a
    conversation is read. Only one thread can use a Chat at a time; another one gets a ValueError.
    """

    @arguments.none_means_default
    def __init__(
        self,
        transformer: Transformer,
        tokenizer: Tokenizer,
        sampler: Sampler,
        system: str | None = "",
        positions: int | None = None,
        messages: Sequence[Mapping[str, str]] | None = (),
        template: str | None = None,
    ):
        """system: the system prompt, "" for none. positions: the most tokens in total, by default
        the whole context. messages: a conversation to be continued. template: a chat template, by
        default the model's own. Raises ValueError if the model has none.
        """
        check_predicts_tokens(transformer.config)
        self._transformer = transformer
        self._tokenizer = tokenizer.extended(transformer.config.vocab_size)
        self._sampler = sampler
        self._owner = Owner(_IN_USE)
        self._state = State(transformer.config)
        self._turns = turns_for(self._tokenizer, template)
        self._messages = checked_messages(messages)
        if arguments.text("system", system):
            self._messages = _with_system(self._messages, str(system))
        self._tokens: list[int] = []  # of all turns; the network has read the first state.pos
        self._held = False  # whether `_tokens` belong to the messages
        self._answers = 0
        most = transformer.config.seq_len
        self.positions = min(arguments.whole("positions", positions or most, 1), most)

    def __repr__(self) -> str:
        return f"Chat({self._state.pos:,} of {self.positions:,} positions read)"

    @property
    def full(self) -> bool:
        """Whether the last answer ended because the context is full."""
        return self._state.pos >= self.positions

    @property
    def messages(self) -> list[Message]:
        """The conversation so far, as copies of {"role": ..., "content": ...}."""
        return [dict(message) for message in self._messages]

    @property
    def system(self) -> str:
        """The system prompt; "" if there is none. A new one counts from the next answer on."""
        first = self._messages[:1]
        return first[0]["content"] if first and first[0]["role"] == "system" else ""

    @system.setter
    def system(self, system: str) -> None:
        self._replace(_with_system(self._messages, arguments.text("system", system)))

    def clear(self) -> None:
        """Forget the conversation, but not the system prompt."""
        self._replace(_with_system([], self.system))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the messages to a JSON file, completely or not at all. Raises OSError."""
        text = json.dumps({"messages": self._messages}, ensure_ascii=False, indent=1)
        write_file(arguments.path_like("path", path), f"{text}\n".encode(errors="replace"))

    def load(self, path: str | os.PathLike[str]) -> None:
        """Replace the conversation by the messages of a file, which any program may have written.

        The file has {"messages": [...]}, or the list alone. Raises ValueError for other contents,
        and OSError.
        """
        self._replace(_read(Path(arguments.path_like("path", path))))

    def send(self, text: str) -> Iterator[str]:
        """Add the user's `text`; yield the answer, a str for each token.

        Raises ValueError, and does not add the text, if it does not fit into the context, if the
        template refuses it, and if another thread uses this Chat. An answer that is not read to its
        end is cut off there: reading it after the next `send` raises ValueError.
        """
        message = {"role": "user", "content": arguments.text("text", text)}
        if self._messages and self._messages[-1]["role"] == "user":
            raise ValueError("the last message has no answer yet: read answer() first")
        return self._reply([*self._messages, message])

    def answer(self) -> Iterator[str]:
        """Yield the answer to the last message, if that is the user's. Raises as `send` does."""
        if not self._messages or self._messages[-1]["role"] != "user":
            raise ValueError("the last message is not the user's: send() one")
        return self._reply(self._messages)

    def _reply(self, messages: list[Message]) -> Iterator[str]:
        with self._owner:
            tokens = self._turns.prompt(messages, self._tokens if self._held else None)
            goes_on = self._held and tokens[: len(self._tokens)] == self._tokens
            kept = self._state.pos if goes_on else _common(self._state.tokens, tokens)
            if len(tokens) > self.positions:
                raise ValueError(
                    f"the context of {self.positions} positions is full: this turn needs "
                    f"{len(tokens) - kept}, {max(self.positions - kept, 0)} are left"
                )
            self._messages = [*messages, {"role": "assistant", "content": ""}]
            self._tokens, self._held = tokens, True
            self._answers += 1
            return Owned(self._answer(self._answers, kept), self._owner)

    def _answer(self, answer: int, kept: int) -> Iterator[str]:
        self._check(answer)
        message = self._messages[-1]
        # The last token is always read, because its logits are not kept.
        self._state.truncate(min(kept, len(self._tokens) - 1, self._state.pos))
        unread = self._tokens[self._state.pos :]
        if self._turns.draws:  # as run.c, which draws at every position of the prompt, too
            self._sampler.skip(len(unread) - 1)
        decoder = Decoder(self._tokenizer, self._tokens[-1], skip_special=True)
        for token, _ in continue_tokens(
            self._transformer,
            self._state,
            unread,
            self._sampler,
            self.positions,
            missing=self._tokenizer.missing,
        ):
            if token in self._turns.ends:
                break
            self._tokens.append(token)
            message["content"] += (piece := decoder.feed(token))
            yield piece
            self._check(answer)
        if rest := decoder.flush():
            message["content"] += rest
            yield rest

    def _check(self, answer: int) -> None:
        if answer != self._answers:
            raise ValueError(
                "this answer ended with the next send(): read it to its end before that"
            )

    def _replace(self, messages: list[Message]) -> None:
        """Go on with another conversation. Its common beginning is not read again."""
        with self._owner:
            self._messages, self._held = messages, False
            self._answers += 1


def _with_system(messages: list[Message], system: str) -> list[Message]:
    rest = messages[1:] if messages and messages[0]["role"] == "system" else messages
    return [{"role": "system", "content": system}, *rest] if system else list(rest)


def _common(read: np.ndarray, tokens: list[int]) -> int:
    """The number of tokens at the beginning that have been read."""
    most = min(len(read), len(tokens))
    differ = np.flatnonzero(read[:most] != np.asarray(tokens[:most], np.int64))
    return int(differ[0]) if differ.size else most


def _read(path: Path) -> list[Message]:
    with open_regular(path) as file:
        data = read_at_most(file, _LARGEST_FILE)
    if data is None:
        raise ValueError(f"{path}: is larger than {_LARGEST_FILE:,} bytes, the maximum here")
    try:
        value = json.loads(data)
        return checked_messages(value.get("messages") if isinstance(value, dict) else value)
    except (ValueError, RecursionError) as error:
        raise ValueError(printable(f"{path}: not a saved chat: {error}")) from None
