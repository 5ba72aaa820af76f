"""GGUF files in parts, as llama.cpp's gguf-split writes them."""

import struct

import numpy as np
import pytest
from gguf_files import info, key, packed

from llama2np.formats import gguf
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.gguf.write import requantized
from llama2np.store.errors import PullError
from llama2np.store.hub import chosen

NAME = "a-{:05d}-of-00003.gguf"
FLOATS = np.arange(24, dtype=np.float32)


def part(number, count=3, total=3, names=None):
    """The bytes of a part: the first has the other metadata, and here no tensors."""
    keys = [key("general.architecture", 8, struct.pack("<Q", 5) + b"llama")] if not number else []
    keys.append(key("split.no", 2, struct.pack("<H", number)))
    keys.append(key("split.count", 2, struct.pack("<H", count)))
    keys.append(key("split.tensors.count", 5, struct.pack("<i", total)))
    names = ([], ["x"], ["y", "z"])[number] if names is None else names
    infos = [info(name, (8,), 0, 32 * i) for i, name in enumerate(names)]
    first = 8 * ("x", "y", "z").index(names[0]) if names else 0
    return packed(keys, infos, FLOATS[first : first + 8 * len(names)].tobytes())


@pytest.fixture
def parts(tmp_path):
    for number in range(3):
        (tmp_path / NAME.format(number + 1)).write_bytes(part(number))
    return tmp_path


def test_all_parts_are_read_when_the_first_is_named(parts):
    file = gguf.read(parts / NAME.format(1))
    assert list(file.tensors) == ["x", "y", "z"]
    for i, tensor in enumerate(file.tensors.values()):
        np.testing.assert_array_equal(tensor.floats(), FLOATS[8 * i : 8 * i + 8])
    assert dict(file.metadata) == {"general.architecture": "llama"}
    assert not any(name.startswith("split.") for name in requantized(file, "F32")[0])


def test_a_file_that_says_that_it_is_the_only_part_is_read(tmp_path):
    (tmp_path / "one.gguf").write_bytes(part(0, count=1, total=1, names=["x"]))
    assert list(gguf.read(tmp_path / "one.gguf").tensors) == ["x"]


CASES = {
    "missing": ({3: None}, 1, r"its part 3 of 3 is missing: get a-00003-of-00003.gguf, too"),
    "another": ({}, 2, r"is part 2 of 3: name the first part, a-00001-of-00003.gguf$"),
    "of another model": ({2: part(1, total=7)}, 1, r"a-00002.*does not belong to a-00001.*= 7"),
    "exchanged": ({2: part(2)}, 1, r"expected split.no = 1, .*found split.no = 2"),
    "no part": ({2: packed([], [info("x", (8,))], bytes(32))}, 1, r"found split.no = -1"),
    "not GGUF": ({2: b"\x01\x02"}, 1, r"a-00002-of-00003.gguf: begins with"),
    "of another kind": ({2: b"<html>"}, 1, r"a-00002-of-00003.gguf: not a GGUF file, but a web"),
    "twice": ({3: part(2, names=["x", "y"])}, 1, r"a-00003.*'x' is in another part, too"),
    "too few": ({3: part(2, names=["y"])}, 1, r"its parts have 2 tensors, expected 3"),
}


@pytest.mark.parametrize("case", CASES)
def test_parts_that_do_not_belong_are_refused_in_one_line(parts, case):
    changed, named, expected = CASES[case]
    for number, data in changed.items():
        path = parts / NAME.format(number)
        path.unlink() if data is None else path.write_bytes(data)
    with pytest.raises(CheckpointError, match=expected) as error:
        gguf.read(parts / NAME.format(named))
    assert "\n" not in str(error.value)


def test_a_first_part_needs_its_name(parts):
    (parts / NAME.format(1)).rename(parts / "b.gguf")
    with pytest.raises(CheckpointError, match=r"ends with -00001-of-00003\.gguf"):
        gguf.read(parts / "b.gguf")


def test_all_parts_are_pulled():
    names = [f"big-Q4_K_M-{i:05d}-of-00002.gguf" for i in (1, 2)]
    assert chosen("a/b", [*names, "big-Q8_0.gguf"], None) == names
    assert chosen("a/b", [*names, "big-Q8_0.gguf"], "q4_k_m") == names
    assert chosen("a/b", [*names, "big-Q8_0.gguf"], names[0]) == names
    with pytest.raises(PullError, match=r"has no big-Q4_K_M-00002-of-00002\.gguf, a part of"):
        chosen("a/b", names[:1], None)
