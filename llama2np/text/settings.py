"""The settings in the files beside a tokenizer: special tokens, ends of texts, chat template.

tokenizer_config.json has most of it, special_tokens_map.json repeats some, generation_config.json
and config.json have the tokens that end an answer, chat_template.jinja the template.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama2np.files import open_regular, read_at_most
from llama2np.formats import kinds
from llama2np.output import brief
from llama2np.text.errors import TokenizerError
from llama2np.text.fields import Fields, checked_text, checked_whole, read_object
from llama2np.text.special_tokens import AddedToken

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LARGEST = 2**23  # bytes in a file
_LARGEST_TEMPLATE = 2**18  # bytes; the longest in use have 20 thousand
_MOST_ENDS = 1000


@dataclass
class Settings:
    """The settings of the tokenizer in a folder; those that no file has are None or empty."""

    names: dict[str, str] = field(default_factory=dict)  # {"bos_token": "<s>"}
    ends: list[int] = field(default_factory=list)  # eos_token_id of the model
    added: list[AddedToken] = field(default_factory=list)
    templates: dict[str, str] = field(default_factory=dict)  # {"default": a chat template}
    fields: Fields = field(default_factory=lambda: Fields({}, "tokenizer_config.json"))

    @property
    def kind(self) -> str:
        """The class of transformers for this tokenizer, such as "Qwen2Tokenizer"."""
        return self.fields.text("tokenizer_class", "").removesuffix("Fast")


def read(folder: Path) -> Settings:
    """Read the files in a folder. Raises TokenizerError, and OSError."""
    settings = Settings()
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if found := _file(folder / name):
            settings.names |= _names(found)
            settings.fields = found
    if (folder / "tokenizer_config.json").is_file():
        settings.added = _added(settings.fields)
        settings.templates = _templates(settings.fields)
    if found := _file(folder / "added_tokens.json"):
        known = {token.content for token in settings.added}
        settings.added += [
            AddedToken(checked_whole(token, f"{found.where}: {brief(text)}"), text, special=False)
            for text, token in found.value.items()
            if text not in known
        ]
    for name in ("generation_config.json", "config.json"):
        if found := _file(folder / name):
            settings.ends += _ends(found)
    path = folder / "chat_template.jinja"
    # Without a brace it is no template, but perhaps a server's "Entry not found" in its place.
    if path.is_file() and "{" in (template := read_template(path)):
        settings.templates["default"] = template
    return settings


def read_template(path: Path) -> str:
    """A chat template in its own file. Raises TokenizerError if it is too large, and OSError."""
    with open_regular(path) as file:
        data = read_at_most(file, _LARGEST_TEMPLATE)
    if data is None:
        raise TokenizerError(f"{path}: is larger than {_LARGEST_TEMPLATE:,} bytes, the maximum")
    return data.decode("utf-8-sig", errors="replace")


def _file(path: Path) -> Fields | None:
    # A pipe is skipped, too: opening it would wait for a writer.
    if not path.is_file():
        return None
    with kinds.named(path, "json", TokenizerError):
        return read_object(path, _LARGEST)


def _names(file: Fields) -> dict[str, str]:
    """The texts of the special tokens, which may be objects with a "content"."""
    names = {}
    for name in NAMES:
        value = file.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if value is not None and value is not False:  # some files say false for "none"
            names[name] = checked_text(value, f"{file.where}: {name}")
    return names


def _added(file: Fields) -> list[AddedToken]:
    """The field added_tokens_decoder: {"32000": {"content": "<pad>", "special": true, ...}}"""
    decoder = file.inner("added_tokens_decoder")
    added = []
    for number in decoder.value if decoder else ():
        entry = decoder.inner(number) if decoder else None
        if entry is None or not (number.isdecimal() and len(number) < 10):
            raise TokenizerError(f"{file.where}: {brief(number)} is not the number of a token")
        flags = ("special", "normalized", "single_word", "lstrip", "rstrip")
        found = {flag: entry.flag(flag) for flag in flags}
        added.append(AddedToken(int(number), entry.text("content"), **found))
    return added


def _ends(file: Fields) -> list[int]:
    value = file.get("eos_token_id")
    ends: list[Any] = value if isinstance(value, list) else [] if value is None else [value]
    if len(ends) > _MOST_ENDS:
        raise TokenizerError(f"{file.where}: eos_token_id has {len(ends):,} tokens")
    # Some files say -1 for "none".
    return [checked_whole(i, f"{file.where}: eos_token_id") for i in ends if i != -1]


def _templates(file: Fields) -> dict[str, str]:
    """The field chat_template: a text, or a list of {"name": ..., "template": ...}."""
    value = file.get("chat_template")
    if not isinstance(value, list):
        where = f"{file.where}: chat_template"
        return {} if value is None else {"default": checked_text(value, where)}
    return {one.text("name"): one.text("template") for one in file.inners("chat_template")}
