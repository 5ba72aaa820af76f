"""A GGUF file in parts, as llama.cpp's gguf-split writes them: NAME-00001-of-00003.gguf and so on.

Each part is a GGUF file with its number, from 0 on, in split.no, the number of parts in
split.count, and the tensors of all parts in split.tensors.count. The first part has the other
metadata. Each part has some of the tensors; the first may have none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.gguf.metadata import Metadata
from llama2np.output import brief
from llama2np.store.parts import part_name, part_names

if TYPE_CHECKING:
    from llama2np.formats.gguf.file import GgufFile

KEYS = ("split.no", "split.count", "split.tensors.count")


def joined(first: GgufFile, read: Callable[[Path], GgufFile]) -> GgufFile:
    """The file with the tensors of all parts; a file that is not split as it is.

    first: the part that was named. read: opens another one. Raises CheckpointError if a part is
    missing or does not belong to the first, or if another one was named.
    """
    metadata, path = first.metadata, Path(first.path)
    count = metadata.whole("split.count", 1)
    if count < 2:
        return first
    number, total = metadata.whole("split.no"), metadata.whole("split.tensors.count")
    if number:
        raise CheckpointError(
            f"{path}: is part {number + 1} of {count}: name the first part"
            + (f", {name}" if (name := part_name(path.name, 1)) else "")
        )
    names = part_names(path.name)
    if len(names) != count:
        raise CheckpointError(
            f"{path}: is the first of {count} parts, expected a name that ends with "
            f"-00001-of-{count:05d}.gguf, beside the others: give the parts their names again"
        )
    tensors = dict(first.tensors)
    for i, name in enumerate(names[1:], 1):
        part = _read_part(path, path.with_name(name), (i, count, total), read)
        if twice := tensors.keys() & part.tensors.keys():
            raise CheckpointError(f"{part.path}: {brief(min(twice))} is in another part, too")
        tensors |= part.tensors
    if len(tensors) != total:
        raise CheckpointError(
            f"{path}: its parts have {len(tensors):,} tensors, expected {total:,}: get all parts "
            "again"
        )
    values = {key: value for key, value in metadata.items() if key not in KEYS}
    packed = {key: value for key, value in first.packed.items() if key not in KEYS}
    return replace(first, metadata=Metadata(first.path, values), packed=packed, tensors=tensors)


def _read_part(
    first: Path, path: Path, expected: tuple[int, int, int], read: Callable[[Path], GgufFile]
) -> GgufFile:
    number, count, _ = expected
    if not path.is_file():
        raise CheckpointError(
            f"{first}: its part {number + 1} of {count} is missing: get {path.name}, too"
        )
    part = read(path)
    found = tuple(part.metadata.whole(key, -1) for key in KEYS)
    if found != expected:
        wanted, has = (
            ", ".join(f"{key} = {value}" for key, value in zip(KEYS, some, strict=True))
            for some in (expected, found)
        )
        raise CheckpointError(
            f"{path}: does not belong to {first.name}: expected {wanted}, found {has}: get all "
            "parts again"
        )
    return part
