"""The names of files in parts, as llama.cpp's gguf-split writes them: NAME-00001-of-00003.gguf."""

from __future__ import annotations

import re

_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL | re.ASCII)


def part_name(name: str, number: int) -> str | None:
    """The name of part `number`, from 1 on, beside the part `name`; None if that is no part."""
    match = _NAME.fullmatch(name)
    return f"{match[1]}-{number:05d}-of-{match[3]}.gguf" if match else None


def part_names(name: str) -> list[str]:
    """The names of all parts, if `name` is that of the first one; else [name]."""
    match = _NAME.fullmatch(name)
    if match is None or int(match[2]) != 1:
        return [name]
    return [name, *(f"{match[1]}-{i:05d}-of-{match[3]}.gguf" for i in range(2, int(match[3]) + 1))]


def is_later_part(name: str) -> bool:
    """Whether this is the name of a part that is not the first one."""
    match = _NAME.fullmatch(name)
    return match is not None and int(match[2]) > 1
