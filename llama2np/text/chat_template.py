"""Chat templates: a conversation as the text that a model was trained with.

A template is a program in Jinja's language, from a file. It runs in jinja2's sandbox, with what
transformers gives it, and within the limits of template_limits.py.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from llama2np.arguments import wrong
from llama2np.output import brief, printable
from llama2np.text.errors import TokenizerError
from llama2np.text.patterns import missing_package

_LONGEST = 2**18  # characters; the longest in use have 20 thousand
_MOST_MESSAGES = 10_000


class ChatTemplate:
    """A chat template, and the texts of the special tokens that it may use.

    names: {"bos_token": "<s>", ...}. where: the file or folder, for errors. It is compiled when it
    is first used: a damaged template does not matter to those who do not chat.
    """

    def __init__(self, source: str, names: Mapping[str, str] | None = None, where: str = ""):
        if not isinstance(source, str):
            raise wrong("the chat template", "a text", source)
        self.source, self.names = source, dict(names or {})
        self._where = f"{where}: " if where else ""

    def __repr__(self) -> str:
        return f"ChatTemplate({brief(self.source)})"

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The text of a conversation: see Tokenizer.apply_chat_template.

        Raises ValueError with the template's own words if it refuses the conversation, and if it
        exceeds its limits.
        """
        template = self._compiled
        from jinja2 import TemplateError

        from llama2np.text.template_limits import TooMuch, metered

        given = self.names | {"tools": None, "documents": None} | variables
        given |= {"messages": _checked(messages), "add_generation_prompt": add_generation_prompt}
        try:
            with metered():
                return str(template.render(given))
        except TooMuch as error:
            raise ValueError(f"{self._where}the chat template {error}") from None
        except TemplateError as error:
            raise ValueError(printable(f"{self._where}the chat template says: {error}")) from None
        except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(printable(f"{self._where}the chat template fails: {error}")) from None
        except RecursionError:
            raise ValueError(f"{self._where}the chat template calls itself too often") from None

    @cached_property
    def _compiled(self) -> Any:
        if len(self.source) > _LONGEST:
            raise TokenizerError(
                f"{self._where}the chat template has {len(self.source):,} characters, expected at "
                f"most {_LONGEST:,}"
            )
        try:
            import jinja2
        except ImportError as error:
            what = f"{self._where}the chat template"
            raise TokenizerError(missing_package("jinja2", error, what)) from None
        from llama2np.text.template_limits import Limited

        env = Limited()
        env.filters["tojson"] = to_json
        env.globals["raise_exception"] = _refuse
        env.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            return env.from_string(self.source)
        except (jinja2.TemplateError, SyntaxError, ValueError, RecursionError) as error:
            raise TokenizerError(
                f"{self._where}the chat template is not valid: {type(error).__name__}: {error}"
            ) from None


def _checked(messages: Any) -> list[Mapping[str, Any]]:
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise wrong("messages", 'a list of {"role": ..., "content": ...}', messages)
    found = list(messages)
    for message in found:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise wrong("a message", '{"role": ..., "content": ...}', message)
    if len(found) > _MOST_MESSAGES:
        raise ValueError(f"messages has {len(found):,}, expected at most {_MOST_MESSAGES:,}")
    return found


def _refuse(text: str) -> str:
    from jinja2 import TemplateError

    raise TemplateError(str(text))


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """transformers' filter `tojson`: JSON that is not escaped for HTML, as jinja's own is."""
    if isinstance(indent, int) and indent > 16:
        raise ValueError(f"tojson: indent is {indent}, expected at most 16")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
