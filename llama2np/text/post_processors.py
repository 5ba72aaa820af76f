"""Post-processors of a tokenizer.json: the special tokens around one text, or around two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llama2np.output import brief
from llama2np.text.errors import TokenizerError
from llama2np.text.fields import Fields, checked_text, checked_whole
from llama2np.text.parts import sequence, unsupported

# A part of a template: a token, or "A" or "B" for a text; and its token type.
Part = tuple[int | str, int]
_MOST_PARTS = 64


@dataclass(frozen=True)
class Template:
    """The tokens around one text, and two. In [CLS] A [SEP] B [SEP], "B [SEP]" has type 1."""

    single: Sequence[Part] = (("A", 0),)
    pair: Sequence[Part] = (("A", 0), ("B", 1))

    @classmethod
    def around(cls, before: Sequence[int] = (), after: Sequence[int] = ()) -> Template:
        """A template with the same tokens around each text."""

        def one(text: str, kind: int) -> list[Part]:
            return [*((t, kind) for t in before), (text, kind), *((t, kind) for t in after)]

        return cls(one("A", 0), [*one("A", 0), *one("B", 1)])

    @classmethod
    def bert(cls, before: int, after: int) -> Template:
        """[CLS] A [SEP], and [CLS] A [SEP] B [SEP]."""
        single: list[Part] = [(before, 0), ("A", 0), (after, 0)]
        return cls(single, [*single, ("B", 1), (after, 1)])

    @property
    def before(self) -> list[int]:
        """The tokens before a single text."""
        texts = [i for i, (part, _) in enumerate(self.single) if part == "A"]
        parts = self.single[: texts[0]] if texts else ()
        return [part for part, _ in parts if isinstance(part, int)]

    def apply(self, a: list[int], b: list[int] | None = None) -> tuple[list[int], list[int]]:
        """The tokens and the token types of one text, or of two."""
        tokens: list[int] = []
        types: list[int] = []
        for part, kind in self.single if b is None else self.pair:
            found = [part] if isinstance(part, int) else (b or []) if part == "B" else a
            tokens += found
            types += [kind] * len(found)
        return tokens, types


def post_processor(fields: Fields | None) -> Template:
    """The template that these fields describe. Raises TokenizerError."""
    return _one(fields, 0) or Template() if fields else Template()


def _one(fields: Fields, depth: int) -> Template | None:
    """The template; None if this part adds no tokens."""
    kind = fields.text("type")
    if kind == "ByteLevel":  # it changes offsets only
        return None
    if kind == "Sequence":
        found = [_one(one, depth + 1) for one in sequence(fields, "processors", depth)]
        templates = [template for template in found if template]
        if len(templates) > 1:
            raise TokenizerError(f"{fields.where}: two of its parts add tokens, expected one")
        return templates[0] if templates else None
    if kind == "TemplateProcessing":
        return _template(fields)
    if kind in ("BertProcessing", "RobertaProcessing"):
        sep, cls = _named(fields, "sep"), _named(fields, "cls")
        if kind == "BertProcessing":
            return Template.bert(cls, sep)
        single: list[Part] = [(cls, 0), ("A", 0), (sep, 0)]
        return Template(single, [*single, (sep, 0), ("B", 0), (sep, 0)])
    raise unsupported(fields, "post_processor", kind, _TYPES)


_TYPES = ("ByteLevel", "TemplateProcessing", "BertProcessing", "RobertaProcessing")


def _named(fields: Fields, key: str) -> int:
    """The token in a field such as ["[SEP]", 102]."""
    value = fields.get(key)
    if not isinstance(value, list) or len(value) != 2:
        raise TokenizerError(
            f"{fields.where}: {key} is {brief(value)}, expected a piece and its number"
        )
    return checked_whole(value[1], f"{fields.where}: {key}")


def _template(fields: Fields) -> Template:
    tokens = fields.inner("special_tokens") or Fields({}, fields.where)
    known: dict[str, list[int]] = {}
    for name in tokens.value:
        entry = tokens.inner(name)
        ids = entry.list("ids") if entry else []
        known[name] = [checked_whole(i, f"{tokens.where}: {brief(name)}") for i in ids]
    single = _parts(fields, "single", known)
    if [part for part, _ in single if isinstance(part, str)] != ["A"]:
        raise TokenizerError(f"{fields.where}: single must have the text A once")
    pair = _parts(fields, "pair", known) if fields.get("pair") else Template.pair
    return Template(single, pair)


def _parts(fields: Fields, key: str, known: dict[str, list[int]]) -> list[Part]:
    parts: list[Part] = []
    for part in fields.inners(key):
        if (text := part.inner("Sequence")) is not None:
            parts.append((_text_of(text), text.whole("type_id", 0)))
        elif (special := part.inner("SpecialToken")) is not None:
            name, kind = special.text("id"), special.whole("type_id", 0)
            if name not in known:
                raise TokenizerError(f"{special.where}: {brief(name)} is not in special_tokens")
            parts += [(token, kind) for token in known[name]]
        else:
            raise TokenizerError(f"{part.where}: expected a Sequence or a SpecialToken")
        if len(parts) > _MOST_PARTS:
            raise TokenizerError(f"{fields.where}: {key} has more than {_MOST_PARTS} parts")
    return parts


def _text_of(text: Fields) -> str:
    name: Any = checked_text(text.get("id"), f"{text.where}: id")
    if name not in ("A", "B"):
        raise TokenizerError(f"{text.where}: id is {brief(name)}, expected A or B")
    return str(name)
