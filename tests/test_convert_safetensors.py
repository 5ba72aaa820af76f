"""safetensors files, judged against the safetensors package, and malicious ones."""

import json
import os
from random import Random

import numpy as np
import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load, save

from llama2np.cli import main
from llama2np.formats import huggingface, safetensors
from llama2np.formats.checkpoint import CheckpointError
from tools.hostile import valid, write_case
from tools.odd import odd_safetensors, reference


def with_header(header, data=b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(first, last, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def read(tensor) -> np.ndarray:
    return np.concatenate(list(tensor.blocks()))


def test_what_the_package_writes(tmp_path):
    random = np.random.default_rng(0)
    tensors = {
        "a": random.standard_normal((3, 5), np.float32),
        "b": random.standard_normal(7).astype(np.float16),
        "c": np.zeros((0, 4), np.float32),
        "d": np.array(7.5, np.float32),
        "e": random.standard_normal((2, 3, 4), np.float32),
    }
    (tmp_path / "x.safetensors").write_bytes(save(tensors, {"format": "np"}))
    found = safetensors.read(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert read(found["d"]) == 7.5 and found["d"].shape == ()
    for name in ("a", "b", "e"):
        assert found[name].dtype == tensors[name].dtype.name
        np.testing.assert_array_equal(read(found[name]), tensors[name])
    assert found["c"].shape == (0, 4)


# The package refuses these too.
MALICIOUS = {
    "a header of 2^60 bytes": ((2**60).to_bytes(8, "little") + b"{}", "2|claims a header"),
    "a header of 2^64 bytes": (b"\xff" * 8 + b"{}", "claims a header"),
    "longer than the file": ((3).to_bytes(8, "little") + b"{}", "claims a header of 3"),
    "nothing": (b"", "not a safetensors file"),
    "no JSON": (with_header(b"{]"), "not valid JSON"),
    "not UTF-8": (with_header(b'{"\xff":1}'), "not valid JSON"),
    "a list": (with_header([]), "expected a JSON object"),
    "deep": (with_header(b"[" * 100_000), "not valid JSON"),
    "a field twice": (
        with_header(b'{"a":{%s,"dtype":"F32"}}' % json.dumps(entry(0, 4, [1])).encode()[1:-1]),
        "dtype occurs twice",
    ),
    "overlapping": (
        with_header({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)),
        "b overlaps",
    ),
    "the same place": (
        with_header({"a": entry(0, 8, [2]), "b": entry(0, 8, [2])}, bytes(8)),
        "overlaps",
    ),
    "a gap": (
        with_header({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12)),
        "leaves a gap",
    ),
    "beyond the end": (with_header({"a": entry(0, 400, [100])}, bytes(8)), "truncated"),
    "too short a file": (with_header({"a": entry(0, 8, [2])}, bytes(7)), "truncated"),
    "too long a file": (with_header({"a": entry(0, 8, [2])}, bytes(9)), "the file has 9"),
    "backwards": (with_header({"a": entry(8, 0, [2])}, bytes(8)), "needs 8"),
    "negative": (with_header({"a": entry(-8, 0, [2])}, bytes(8)), "-8"),
    "another shape": (with_header({"a": entry(0, 8, [3])}, bytes(8)), "needs 12"),
    "an overflowing shape": (
        with_header({"a": entry(0, 0, [2**40, 2**40])}),
        "needs",
    ),
    "an absurd shape": (with_header({"a": entry(0, 0, [2**63, 0])}), "shape"),
    "a shape of text": (with_header({"a": entry(0, 4, "1")}, bytes(4)), "shape"),
    "half an element": (with_header({"a": entry(0, 4, [1.0])}, bytes(4)), "shape"),
    "an unknown type": (with_header({"a": entry(0, 4, [1], "F31")}, bytes(4)), "is F31"),
    "a type of another kind": (with_header({"a": entry(0, 4, [1], {})}, bytes(4)), "expected"),
    "no offsets": (with_header({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)), "data_offsets"),
    "no entry": (with_header({"a": None}), "data_offsets"),
}


@pytest.mark.parametrize("case", MALICIOUS)
def test_malicious_files(tmp_path, case):
    data, match = MALICIOUS[case]
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=match) as told:
        safetensors.read(path)
    assert str(path) in str(told.value) and len(str(told.value)) < 400
    assert os.listdir(tmp_path) == ["x.safetensors"]
    with pytest.raises((SafetensorError, OverflowError, ValueError)):
        load(data)


TYPES = "bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 float64".split()


def test_types_that_are_no_weights(tmp_path, capsys):
    """They are no reason to refuse the file."""
    tensors = {name: np.ones((2, 3), name) for name in TYPES}
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(tensors))
    for name, tensor in safetensors.read(path).items():
        assert tensor.dtype == name and (read(tensor) == 1).all()
    assert main(["inspect", str(path)]) == 0
    assert "(2, 3) int64, 48 bytes" in capsys.readouterr().out
    path.write_bytes(with_header({"x": entry(0, 2, [4], "F4")}, bytes(2)))
    (tensor,) = safetensors.read(path).values()
    with pytest.raises(CheckpointError, match="tensors of type F4 cannot be read here"):
        read(tensor)


def test_weights_of_such_a_type(tmp_path):
    case = dict(valid("hf")[0])
    case["model.safetensors"] = case["model.safetensors"].replace(b'"F32"', b'"I32"', 1)
    write_case(case, tmp_path)
    with pytest.raises(CheckpointError, match=r"\.weight: is int32, expected float32, float16, bf"):
        huggingface.read(tmp_path)


def agree(path, data) -> bool:
    """Whether the file is accepted: by us, and by the package, which find the same in it."""
    path.write_bytes(data)
    expected = reference(path)
    try:
        found = {name: tensor.shape for name, tensor in safetensors.read(path).items()}
    except CheckpointError as error:
        assert expected is None, f"{data!r}: the package accepts it, we say {error}"
        return False
    assert expected is not None, f"{data!r}: the package refuses it"
    assert found == {name: shape for name, (_, shape) in expected.items()}, data
    return True


USUAL = '"dtype":"F32","shape":[1],"data_offsets":[0,4]'  # replaces @ in these headers
ACCEPTED = {
    "white space around": ' \n{"a":{@}}\r\t ',
    "a name twice": '{"a":{"dtype":"F32","shape":[9],"data_offsets":[90,4]},"a":{@}}',
    "a list for an object": '{"a":["F32",[1],[0,4]]}',
    "an object for a type": '{"a":{"dtype":{"F32":null},"shape":[1],"data_offsets":[0,4]}}',
    "more fields": '{"a":{@,"x":[1,{"y":null}],"x":-0,"z":1e-999,"w":' + "9" * 300 + "}}",
    "as deep as may be": '{"a":{@,"x":' + "[" * 125 + "]" * 125 + "}}",
    "metadata": '{"__metadata__":{"a":"1","a":"\\ud83d\\ude00"},"a":{@}}',
    "no metadata": '{"__metadata__":null,"a":{@}}',
    "escapes": '{"é\\u00e9\\"\x7f\\/":{"d\\u0074ype":"F3\\u0032",'
    '"shape":[1],"data_offsets":[0,4]}}',
    "nothing after it": '{"a":{@},"b":{"dtype":"I64","shape":[0],"data_offsets":[4,4]}}',
    "nothing before it": '{"a":{@},"b":{"dtype":"BOOL","shape":[0,7],"data_offsets":[0,0]}}',
    "backwards": '{"b":{"dtype":"U8","shape":[3],"data_offsets":[1,4]},'
    '"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}',
}
REFUSED = {
    "a byte order mark": '\ufeff{"a":{@}}',
    "another white space": '\f{"a":{@}}',
    "something after it": '{"a":{@}}\0',
    "a comma too many": '{"a":{@},}',
    "half a character": '{"\\ud800":{@}}',
    "half a character that is ignored": '{"a":{@,"x":["\\udc00"]}}',
    "half a character in metadata": '{"__metadata__":{"a":"\\ud800"},"a":{@}}',
    "metadata that is a number": '{"__metadata__":5,"a":{@}}',
    "metadata of numbers": '{"__metadata__":{"a":5},"a":{@}}',
    "metadata that is a tensor": '{"__metadata__":{@}}',
    "metadata twice": '{"__metadata__":null,"__metadata__":{},"a":{@}}',
    "a name twice, the first one no tensor": '{"a":5,"a":{@}}',
    "a name twice, the first one of no type": '{"a":["F31",[1],[0,4]],"a":{@}}',
    "not a number": '{"a":{@,"x":NaN}}',
    "too large a number": '{"a":{@,"x":1e999}}',
    "too many digits": '{"a":{@,"x":' + "9" * 400 + "}}",
    "too deep": '{"a":{@,"x":' + "[" * 126 + "]" * 126 + "}}",
    "minus zero": '{"a":{"dtype":"F32","shape":[1],"data_offsets":[-0,4]}}',
    "a float": '{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}',
    "a truth": '{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}',
    "2^64": '{"a":{"dtype":"F32","shape":[0,18446744073709551616],"data_offsets":[0,0]}}',
    "a leading zero": '{"a":{"dtype":"F32","shape":[01],"data_offsets":[0,4]}}',
    "a control character": '{"\1":{@}}',
    "a list that is too long": '{"a":["F32",[1],[0,4],0]}',
    "three offsets": '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,4]}}',
    "half a byte": '{"a":{"dtype":"F4","shape":[1],"data_offsets":[0,0]}}',
    "a place between": '{"a":{@},"b":{"dtype":"F32","shape":[0],"data_offsets":[2,2]}}',
}


@pytest.mark.parametrize("name", [*ACCEPTED, *REFUSED])
def test_the_package_agrees(tmp_path, name):
    header = (ACCEPTED | REFUSED)[name].replace("@", USUAL).encode()
    assert agree(tmp_path / "x.safetensors", with_header(header, bytes(4))) == (name in ACCEPTED)


@pytest.mark.parametrize("encoding", ("utf-16", "utf-16-le", "utf-32", "latin-1", "utf-8"))
def test_the_package_agrees_on_encodings(tmp_path, encoding):
    header = f'{{"é":{{{USUAL}}}}}'.encode(encoding)
    accepted = agree(tmp_path / "x.safetensors", with_header(header, bytes(4)))
    assert accepted == (encoding == "utf-8")


@settings(max_examples=examples(400))
@given(st.integers(0, 2**32))
def test_the_package_agrees_on_anything(tmp_path_factory, seed):
    agree(tmp_path_factory.getbasetemp() / "any.safetensors", odd_safetensors(Random(seed)))


def test_anything_is_of_both_kinds(tmp_path):
    path = tmp_path / "x.safetensors"
    accepted = [agree(path, odd_safetensors(Random(seed))) for seed in range(200)]
    assert 30 < sum(accepted) < 100


def test_an_entry_of_millions_of_characters(tmp_path):
    """The one thing that we refuse and the package does not: it would take a gigabyte."""
    path = tmp_path / "x.safetensors"
    header = f'{{"a":{{{USUAL},"x":"{"x" * 2**21}"}}}}'
    path.write_bytes(with_header(header.encode(), bytes(4)))
    with pytest.raises(CheckpointError, match="an entry of more than 2,097,152 characters"):
        safetensors.read(path)
    assert agree(path, with_header(header.replace("xx", "x").encode(), bytes(4)))


@given(st.binary(max_size=80), st.booleans())
def test_any_bytes_are_refused_or_read(tmp_path_factory, data, as_header):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(with_header(data) if as_header else data)
    try:
        safetensors.read(path)
    except CheckpointError as error:
        assert str(path) in str(error)


OFFSETS = st.integers(-8, 40) | st.sampled_from((2**31, 2**63, 2**64))


@given(
    st.dictionaries(
        st.sampled_from("abc"),
        st.builds(
            entry,
            OFFSETS,
            OFFSETS,
            st.lists(st.integers(0, 6) | st.sampled_from((2**32, 2**62)), max_size=3),
            st.sampled_from(("F32", "F16")),
        ),
        max_size=3,
    ),
    st.integers(0, 40),
)
def test_whatever_we_read_the_package_reads_alike(tmp_path_factory, header, size):
    data = with_header(header, bytes(range(size)))
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(data)
    try:
        found = safetensors.read(path)
    except CheckpointError:
        return
    expected = load(data)
    assert found.keys() == expected.keys()
    assert all(found[name].shape == tensor.shape for name, tensor in expected.items())
