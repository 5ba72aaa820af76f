"""A prompt of a file or a list: its text, its id, its options, and its seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from llama2np.jsonl import parsed


@dataclass(frozen=True, slots=True)
class Prompt:
    """fields: "prompt" (a text or tokens) or "messages" (a conversation), and its own options."""

    fields: dict[str, Any]
    id: Any = None

    @classmethod
    def of_line(cls, line: bytes) -> Prompt:
        """The prompt of a line of JSON: a text or an object. Raises ValueError."""
        value = parsed(line)
        if not isinstance(value, str | dict):
            raise ValueError("expected a text or an object with a prompt")
        return cls.of(value)

    @classmethod
    def of(cls, value: Any) -> Prompt:
        """The prompt of a text, of tokens, or of a dict, as `Llama.generate_batch` takes them.

        The keys of logit_bias may be texts, as in JSON. Raises ValueError.
        """
        if isinstance(value, str | Sequence | np.ndarray) and not isinstance(value, bytes):
            return cls({"prompt": value})
        if not isinstance(value, Mapping):
            raise ValueError("expected a text, a list of tokens, or a dict with a prompt")
        fields = dict(value)
        name = fields.pop("id", None)
        if isinstance(bias := fields.get("logit_bias"), Mapping):
            fields["logit_bias"] = {int(token): x for token, x in bias.items()}
        return cls(fields, name)

    @property
    def given(self) -> Any:
        """The text, the tokens or the conversation. Raises ValueError if there is none."""
        if not {"prompt", "messages"} & self.fields.keys():
            raise ValueError('expected "prompt" or "messages"')
        return self.fields.get("prompt", self.fields.get("messages"))

    @property
    def text(self) -> str:
        """The text, for tasks that take nothing else. Raises ValueError."""
        text = self.fields.get("text", self.fields.get("prompt"))
        if not isinstance(text, str):
            raise ValueError('expected a text, or an object with "prompt" or "text"')
        return text


def seed_of(drawn: int, *place: int) -> int:
    """The seed of a prompt if neither the prompt nor the run has one: a number from 1 to 2**63 - 1.

    drawn: a number that is drawn once for the whole run; place: where the prompt stands, such as
    the numbers of its file and of its line. So the seed depends neither on which worker takes the
    prompt nor on how the prompts are cut into chunks, and it is the same when a run goes on.
    """
    text = " ".join(map(str, (drawn, *place)))
    return (int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1) or 1
