"""A plugin for the command `llm`: its models llama2np:NAME run here. See docs/server.md.

`llm` finds it by an entry point, and imports it at each start: so what runs a model is imported
when it is needed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import llm
from pydantic import Field

from llama2np import box
from llama2np.atomic import write_file
from llama2np.store.catalogue import CATALOGUE, recommended
from llama2np.store.names import find, pulled

if TYPE_CHECKING:
    from llama2np.decoding.chat import Chat
    from llama2np.llama import Llama

PREFIX = "llama2np:"
_FILE = "llama2np.json"  # in llm's folder: {name: path}, what `llm llama2np add` was given


class Model(llm.Model):
    """A model of llama2np. It is loaded with the first prompt, and stays loaded."""

    can_stream = True

    class Options(llm.Options):
        """What to generate and how to sample, as `Llama.generate` has it."""

        temperature: float | None = Field(None, ge=0, description="0: always the best token")
        max_tokens: int | None = Field(None, ge=0, description="Most tokens of an answer")
        top_p: float | None = Field(None, ge=0, le=1, description="Sample from this share")
        top_k: int | None = Field(None, ge=0, description="Sample from so many tokens; 0: all")
        min_p: float | None = Field(None, ge=0, le=1, description="Least share of the best one's")
        repetition_penalty: float | None = Field(None, gt=0, description="1: none")
        presence_penalty: float | None = Field(None, description="0: none")
        frequency_penalty: float | None = Field(None, description="0: none")
        seed: int | None = Field(None, description="The same seed gives the same text")
        chat: bool | None = Field(
            None,
            description="Answer by a chat template, or continue the text; by default what the "
            "model is made for",
        )

    def __init__(self, name: str, path: str | None = None):
        self.model_id = PREFIX + name
        self._path = path or name
        self._llama: Llama | None = None
        self._chat: tuple[Chat, Mapping[str, Any]] | None = None  # the last one, and its options

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.Response,
        conversation: llm.Conversation | None,
    ) -> Iterator[str]:
        """Yield the answer, a str for each token; at once it all, if not `stream`."""
        llama, options = self._loaded(), prompt.options.model_dump(exclude_none=True)
        own, most = options.pop("chat", None), options.pop("max_tokens", None)
        known = recommended(self._path)
        suggested = dict(known.sampling) if known else llama.suggested_sampling
        options = {**suggested, **options}
        messages = _messages(prompt)
        chats = llama.tokenizer.chat_template is not None if own is None else own
        made = self._answer if chats else self._continue
        pieces = list[str]()
        for piece in made(llama, messages, options, most, response):
            pieces.append(piece)
            if stream:
                yield piece
        if not stream:
            yield "".join(pieces)

    def _answer(
        self,
        llama: Llama,
        messages: list[dict[str, str]],
        options: dict[str, Any],
        most: int | None,
        response: llm.Response,
    ) -> Iterator[str]:
        """Answer the last message. What was read for the turns before is not read again."""
        if not messages or messages[-1]["role"] != "user":
            raise llm.ModelError("the last message must be the user's")
        chat, last = self._chat or (None, None)
        self._chat = None  # if this fails, the next one begins anew
        if chat is None or last != options or chat.messages != messages[:-1]:
            chat = llama.chat(messages=messages[:-1], **options)
        made = 0
        if most != 0:
            for piece in chat.send(messages[-1]["content"]):
                made += 1
                yield piece
                if made == most:
                    break
        self._chat = chat, options
        prompt = llama.request({"messages": messages}, {}).prompt
        response.set_usage(input=len(prompt), output=made)

    def _continue(
        self,
        llama: Llama,
        messages: list[dict[str, str]],
        options: dict[str, Any],
        most: int | None,
        response: llm.Response,
    ) -> Iterator[str]:
        """Continue the text of all messages: for models that do not chat."""
        if messages and messages[0]["role"] == "system":
            raise llm.ModelError(f"{self._path} continues a text: it takes no system prompt")
        text = "".join(message["content"] for message in messages)
        made = llama.generate(text, max_new_tokens=most, **options)
        yield from made
        response.set_usage(input=len(made.prompt), output=len(made.tokens))

    def _loaded(self) -> Llama:
        if self._llama is None:
            name = self._path
            if name in CATALOGUE and find(name) is None and not os.path.exists(name):
                raise llm.ModelError(f"{name} is not here: llama2np pull {name}")
            from llama2np.llama import Llama

            try:
                self._llama = Llama.load(name)
            except (OSError, ValueError) as error:
                raise llm.ModelError(str(error)) from error
        return self._llama


@llm.hookimpl
def register_models(register: Any) -> None:
    """Tell `llm` the bundled models, those of the catalogue, the pulled ones, and added paths."""
    added = _added()
    names = [*box.NAMES, *CATALOGUE, *(model.name for model in pulled())]
    for name in dict.fromkeys(names):
        if name not in added:
            register(Model(name))
    for name, path in added.items():
        register(Model(name, path))


@llm.hookimpl
def register_commands(cli: click.Group) -> None:
    """Add `llm llama2np add` and `llm llama2np remove`."""

    @cli.group()
    def llama2np() -> None:
        """Models in files and folders, for llama2np"""

    @llama2np.command()
    @click.argument("path", type=click.Path(exists=True))
    @click.option("--name", help="By default the name of the file or folder, without its ending")
    def add(path: str, name: str | None) -> None:
        """Let -m llama2np:NAME run the model at PATH"""
        place = Path(path).resolve()
        name = name or (place.name if place.is_dir() else place.stem)
        _write(_added() | {name: str(place)})
        click.echo(f"{PREFIX}{name}")

    @llama2np.command()
    @click.argument("name")
    def remove(name: str) -> None:
        """Forget a NAME; its file stays"""
        added = _added()
        if added.pop(name.removeprefix(PREFIX), None) is None:
            raise click.ClickException(f"{name} was not added; these are: {', '.join(added)}")
        _write(added)


def _messages(prompt: llm.Prompt) -> list[dict[str, str]]:
    """The conversation that ends with this prompt, as texts."""
    found = []
    for message in prompt.messages:
        texts = [getattr(part, "text", None) for part in message.parts]
        if message.role not in ("system", "user", "assistant") or None in texts:
            raise llm.ModelError("llama2np reads texts of system, user and assistant only")
        found.append({"role": message.role, "content": "".join(map(str, texts))})
    return found


def _added() -> dict[str, str]:
    """The names that were added, with their paths."""
    try:
        data = json.loads(_file().read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{_file()}: {error}") from None
    return {str(name): str(path) for name, path in data.items()} if isinstance(data, dict) else {}


def _write(added: dict[str, str]) -> None:
    text = json.dumps(added, indent=2, ensure_ascii=False) + "\n"
    write_file(_file(), text.encode(errors="surrogateescape"))


def _file() -> Path:
    return Path(llm.user_dir()) / _FILE  # type: ignore[no-untyped-call]
