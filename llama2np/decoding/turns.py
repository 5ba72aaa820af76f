"""How a conversation becomes the tokens that a model reads: by its chat template, or as Llama 2's.

A message is {"role": "system", "user" or "assistant", "content": a text}.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from llama2np.arguments import wrong
from llama2np.text.chat_template import ChatTemplate
from llama2np.text.tokenizer import Tokenizer

Message = dict[str, str]
ROLES = ("system", "user", "assistant")


class Turns(Protocol):
    """One way of writing a conversation.

    `ends` are the tokens that end an answer. `draws`: whether a random number is drawn for each
    position that is read, as run.c does.
    """

    ends: frozenset[int]
    draws: bool

    def prompt(self, messages: Sequence[Message], said: list[int] | None) -> list[int]:
        """The tokens of a conversation that ends with a message of the user.

        said: the tokens of all before that message, as they were read and generated, without the
        end of the last answer; None if the conversation was not held here, or was changed since.
        Raises ValueError if the template refuses the conversation.
        """


class Llama2Turns:
    """The template of Llama 2's chat models, as in `generation.py` of Meta's llama.

    Each turn begins with BOS, and each answer ends with EOS, if the tokenizer has them.
    """

    draws = True

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        self.ends = frozenset(self._end)

    def prompt(self, messages: Sequence[Message], said: list[int] | None) -> list[int]:
        """See Turns.prompt."""
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        turns = [message for message in messages if message["role"] != "system"]
        if [message["role"] for message in turns] != ["user", "assistant"] * (len(turns) // 2) + [
            "user"
        ]:
            raise ValueError("Llama 2's template needs alternating messages of user and assistant")
        questions = [message["content"] for message in turns[::2]]
        if system:
            questions[0] = f"<<SYS>>\n{system}\n<</SYS>>\n\n{questions[0]}"
        tokens = said
        if tokens is None:
            tokens = []
            for question, answer in zip(questions, turns[1::2], strict=False):
                text = f"[INST] {question} [/INST] {answer['content'].strip()} "
                tokens += (self._end if tokens else []) + self._tokenizer.encode(text)
        turn = self._tokenizer.encode(f"[INST] {questions[-1]} [/INST]")
        return [*tokens, *self._end, *turn] if tokens else turn


class TemplateTurns:
    """A model's own chat template.

    Earlier messages are not encoded again, since a model may have written a text in other tokens
    than `encode` returns: if the new text begins with the old one, only what follows it is encoded.
    """

    draws = False

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate):
        self._tokenizer, self._template = tokenizer, template
        self._text = ""  # of the last prompt
        names = (_name(tokenizer, token) for token in tokenizer.special_ids)
        self._marks = tuple(filter(None, names))
        self.ends = tokenizer.ends | self._end_of_turn()

    def prompt(self, messages: Sequence[Message], said: list[int] | None) -> list[int]:
        """See Turns.prompt."""
        text = self._template.render(messages)
        before = self._text + (messages[-2]["content"] if said and len(messages) > 1 else "")
        rest = text[len(before) :]
        # A special token is a border of the encoding; at other places the tokens may span it.
        if said and text.startswith(before) and rest.startswith(self._marks):
            tokens = said + self._encode(rest)
        else:
            tokens = self._encode(text)
        if not tokens:
            raise ValueError("the chat template makes no text of this conversation")
        self._text = text
        return tokens

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, bos=False, special=True)

    def _end_of_turn(self) -> frozenset[int]:
        """The special token that the template writes after an answer, if there is one."""
        mark = "9d4f0c"
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
        try:
            _, found, rest = self._template.render(messages, False).rpartition(mark)
        except ValueError:  # it accepts other conversations only
            return frozenset()
        tokens = self._encode(rest.lstrip())[:1] if found else []
        return frozenset(tokens) & self._tokenizer.special_ids


def turns_for(tokenizer: Tokenizer, template: str | None) -> Turns:
    """The template that is given, else the tokenizer's, else Llama 2's.

    Llama 2's is for llama2.c's files. Raises ValueError for other models without a template.
    """
    own = tokenizer.chat_template
    if template is not None:
        names = {name: _name(tokenizer, token) for name, token in tokenizer.special.items()}
        own = ChatTemplate(template, own.names if own else names)
    if own is not None:
        return TemplateTurns(tokenizer, own)
    if not tokenizer.scores:  # it is not a tokenizer.bin or tokenizer.model
        raise ValueError(
            "this model has no chat template, so it was probably not trained to chat: give one "
            "(template=..., --template FILE), or let it continue a text (generate(), llama2np run)"
        )
    return Llama2Turns(tokenizer)


def _name(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.pieces[token].decode(errors="replace").strip("\n")  # llama2.c's "\n<s>\n"


def checked_messages(messages: Any) -> list[Message]:
    """Messages as a list of new objects with the fields role and content. Raises ValueError."""
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise wrong("messages", 'a list of {"role": ..., "content": ...}', messages)
    return [_checked(message) for message in messages]


def _checked(message: Any) -> Message:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise wrong("a message", '{"role": ..., "content": ...}', message)
    if message["role"] not in ROLES:
        raise wrong("the role of a message", " or ".join(ROLES), message["role"])
    if not isinstance(message["content"], str):
        raise wrong("the content of a message", "a text", message["content"])
    return {"role": message["role"], "content": message["content"]}
