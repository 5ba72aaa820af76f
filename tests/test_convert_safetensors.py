"""safetensors files, judged against the safetensors package, and malicious ones."""

import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load, save

from llama2np.checkpoint import CheckpointError
from llama2np.convert import safetensors


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
    }
    (tmp_path / "x.safetensors").write_bytes(save(tensors, {"format": "np"}))
    found = safetensors.read(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name in ("a", "b"):
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
    "a name twice": (
        with_header(b'{"a":%s,"a":%s}' % ((json.dumps(entry(0, 4, [1])).encode(),) * 2), bytes(4)),
        "comes twice",
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
    if case != "a name twice":  # of which the package takes one
        with pytest.raises((SafetensorError, OverflowError, ValueError)):
            load(data)


def test_a_type_that_is_no_weights(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"x": np.arange(3)}))
    with pytest.raises(CheckpointError, match="x: is I64, expected float32, float16, bfloat16"):
        safetensors.read(path)


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
