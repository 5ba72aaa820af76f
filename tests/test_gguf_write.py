"""Quantizing, and writing GGUF: the bytes of the package gguf, which reads the files."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llama2np.formats import gguf
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.gguf.quantize import QUANTIZED, quantize
from llama2np.formats.gguf.write import FILE_TYPES, NewTensor, packed, requantized, type_for, write
from llama2np.formats.source import Stored
from llama2np.model.blocks import dequantize

theirs = pytest.importorskip("gguf")
FLOATS = st.one_of(st.floats(-1e4, 1e4, width=32), st.floats(-1, 1, width=16))


@pytest.mark.parametrize("kind", FILE_TYPES)
def test_bytes_are_those_of_the_reference(reference, kind):
    quants = np.load(reference / "gguf" / "quants.npz")
    if f"{kind}_src" in quants:
        got = quantize(quants[f"{kind}_src"].reshape(-1, 32), kind)
        assert np.array_equal(got.ravel(), quants[f"{kind}_src_blocks"].ravel())


@pytest.mark.parametrize("kind", FILE_TYPES)
@given(values=arrays(np.float32, (3, 64), elements=FLOATS))
def test_bytes_are_those_of_the_package(kind, values):
    values[np.abs(values) < 1e-30] = 0  # there the package divides by zero
    expected = theirs.quantize(values, theirs.GGMLQuantizationType[kind])
    assert np.array_equal(quantize(values, kind), expected.view(np.uint8).reshape(3, -1))


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantizing_at_the_edges(kind):
    values = np.zeros((4, 32), np.float32)
    values[1] = 1e-45  # smaller than float16 has
    values[2, 5] = -1
    values[3] = np.linspace(-2, 2, 32)
    back = dequantize(quantize(values, kind), kind)
    bits = int(kind[1])
    assert np.all(back[:2] == 0) and back[2, 5] == pytest.approx(-1, abs=1e-3)
    assert np.abs(back[3] - values[3]).max() <= 4 / (2**bits - 1) * 0.51 + 2 / 2**bits
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match=f"nan or inf, which {kind} cannot represent"):
            quantize(np.full((1, 32), bad, np.float32), kind)
    with pytest.raises(ValueError, match=f"has values beyond the range of {kind}: use F32"):
        quantize(np.full((1, 32), 1e20, np.float32), kind)


def test_floats_at_the_edges():
    values = np.array([[1e20, np.inf, np.nan, -1]], np.float32)
    with pytest.raises(ValueError, match="has values beyond the range of F16"):
        quantize(values[:, :1], "F16")
    assert np.array_equal(quantize(values, "F32").view("<f4"), values, equal_nan=True)
    assert quantize(values[:, 1:], "F16").view("<f2")[0, 0] == np.inf


@pytest.mark.parametrize("kind", FILE_TYPES)
@pytest.mark.parametrize("source", ["mixtral.F32", "gpt2.F16", "qwen2.BF16", "llama_k.Q4_K_M"])
def test_a_file_of_another_type(reference, tmp_path, source, kind):
    file = gguf.read(reference / "gguf" / f"{source}.gguf")
    path, written = tmp_path / "x.gguf", []
    size = write(path, *requantized(file, kind), written.append)
    assert path.stat().st_size == size
    assert sum(written) == sum(np.prod(tensor.shape) for tensor in file.tensors.values())
    made, read = theirs.GGUFReader(path), gguf.read(path)
    assert {**read.packed, "general.file_type": 0} == {**file.packed, "general.file_type": 0}
    assert read.metadata["general.file_type"] == FILE_TYPES[kind]
    assert [tensor.name for tensor in made.tensors] == list(file.tensors)
    types = set()
    for tensor, old in zip(made.tensors, file.tensors.values(), strict=True):
        types.add(tensor.tensor_type.name)
        if tensor.tensor_type.name == old.type.name:
            expected = old.data
        else:
            values = np.concatenate(list(old.stored().blocks()))
            expected = theirs.quantize(values, tensor.tensor_type).view(np.uint8)
        assert np.array_equal(np.asarray(tensor.data).view(np.uint8).ravel(), expected.ravel())
    head = {"Q8_0"} if kind in QUANTIZED else set()
    assert types == {"F32", kind} | head


def test_the_type_of_a_tensor():
    for name, shape, is_head, expected in (
        ("blk.0.attn_q.weight", (64, 64), False, "Q4_0"),
        ("blk.0.attn_norm.weight", (64,), False, "F32"),
        ("blk.0.ffn_gate_inp.weight", (8, 64), False, "F32"),
        ("position_embd.weight", (128, 64), False, "F32"),
        ("output.weight", (100, 64), True, "Q8_0"),
        ("blk.0.ffn_down.weight", (64, 40), False, "F16"),
        ("blk.0.ffn_down_exps.weight", (8, 64, 32), False, "Q4_0"),
    ):
        assert type_for(name, shape, "Q4_0", is_head) == expected
    assert type_for("output.weight", (100, 64), "BF16", True) == "BF16"


def test_metadata(tmp_path):
    values = {
        "text": "käse", "yes": True, "whole": 7, "real": 0.1, "texts": ["a", "", "▁"],
        "floats": np.array([1, 2], "<f4"), "wholes": np.array([-1, 2], "<i4"), "none": [],
    }  # fmt: skip
    path = tmp_path / "x.gguf"
    write(path, {key: packed(value) for key, value in values.items()}, [])
    fields = theirs.GGUFReader(path).fields
    for key, value in values.items():
        found, expected = fields[key].contents(), value
        if isinstance(value, np.ndarray):
            expected = value.tolist()
        assert np.float32(found) == np.float32(0.1) if key == "real" else found == expected


def test_an_error_leaves_no_file(tmp_path):
    values = np.zeros((3, 32), np.float32)
    values[2, 3] = np.nan
    path = tmp_path / "x.gguf"
    with pytest.raises(CheckpointError, match="blk.0.attn_q.weight has values that are nan or inf"):
        write(path, {}, [NewTensor("blk.0.attn_q.weight", "Q8_0", Stored.view(values))])
    assert not list(tmp_path.iterdir())
