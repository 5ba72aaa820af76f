"""Quantizing, and writing GGUF: the bytes of the package gguf, which reads the files."""

import hashlib

import numpy as np
import pytest
from conftest import examples, pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llama2np.formats import gguf
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.gguf.quantize import QUANTIZED, quantize
from llama2np.formats.gguf.write import FILE_TYPES, NewTensor, packed, requantized, type_for, write
from llama2np.formats.source import Stored
from llama2np.model.gguf_blocks import FORMATS, dequantize

theirs = pytest.importorskip("gguf")
LLAMA_CPP = {
    "Q4_K": "33054f2a3c4010c978a8845cec6d4668161043ecde9c485dfe447b7132798a27",
    "Q6_K": "c04443f3b81f1fe2630290646c362744ba58d1c8652b544bef7a48d2ed65a6db",
}
SIMPLE = [kind for kind in FILE_TYPES if not kind.endswith("_K")]  # the package writes no others
FLOATS = st.one_of(st.floats(-1e4, 1e4, width=32), st.floats(-1, 1, width=16))


@pytest.mark.parametrize("kind", FILE_TYPES)
def test_bytes_are_those_of_the_reference(reference, kind):
    quants = np.load(reference / "gguf" / "quants.npz")
    if f"{kind}_src" in quants:
        got = quantize(quants[f"{kind}_src"].reshape(-1, 32), kind)
        assert np.array_equal(got.ravel(), quants[f"{kind}_src_blocks"].ravel())


@pytest.mark.parametrize("kind", SIMPLE)
@settings(max_examples=examples(40))
@given(values=arrays(np.float32, (3, 64), elements=FLOATS))
def test_bytes_are_those_of_the_package(kind, values):
    values[np.abs(values) < 1e-30] = 0  # there the package divides by zero
    expected = theirs.quantize(values, theirs.GGMLQuantizationType[kind])
    assert np.array_equal(quantize(values, kind), expected.view(np.uint8).reshape(3, -1))


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantizing_at_the_edges(kind):
    size = FORMATS[kind].values
    values = np.zeros((4, size), np.float32)
    values[1] = 1e-45  # smaller than float16 has
    values[2, 5] = -1
    values[3] = np.linspace(-2, 2, size)
    back = dequantize(quantize(values, kind), kind)
    bits = int(kind[1])
    assert np.all(back[:2] == 0) and back[2, 5] == pytest.approx(-1, abs=1e-2)
    assert np.abs(back[3] - values[3]).max() <= 4 / (2**bits - 1) * 0.51 + 2 / 2**bits
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match=f"nan or inf, which {kind} cannot represent"):
            quantize(np.full((1, size), bad, np.float32), kind)
    with pytest.raises(ValueError, match=f"has values beyond the range of {kind}: use F32"):
        quantize(np.full((1, size), 1e20, np.float32), kind)


def values_for(kind: str) -> np.ndarray:
    """Many shapes of a block, without a random generator whose numbers could change."""
    i = np.arange(48 * 256, dtype=np.uint64).reshape(48, 256)
    uniform = (i * i * 40503 + i * 2654435761) % 2**32 / 2**32 - 0.5
    values = uniform * uniform * uniform * 2.0 ** (i[:, :1] % 7 - 4.0)
    values[3], values[4] = 0, np.abs(values[4])
    values[5] = np.round(values[5] * 3)
    values[6, ::3] = 0
    return values.astype(np.float32)


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])
def test_blocks_of_256_are_those_of_llama_cpp(kind):
    """sha256 of what ggml_quantize_chunk of llama.cpp (llama-cpp-python 0.3.36) makes of them."""
    got = quantize(values_for(kind), kind)
    assert hashlib.sha256(got.tobytes()).hexdigest() == LLAMA_CPP[kind]


def test_floats_at_the_edges():
    values = np.array([[1e20, np.inf, np.nan, -1]], np.float32)
    with pytest.raises(ValueError, match="has values beyond the range of F16"):
        quantize(values[:, :1], "F16")
    assert np.array_equal(quantize(values, "F32").view("<f4"), values, equal_nan=True)
    assert quantize(values[:, 1:], "F16").view("<f2")[0, 0] == np.inf


SOURCES = ("mixtral.F32", "gpt2.F16", "qwen2.BF16", "llama_k.Q4_K_M")


@pytest.mark.parametrize("case", pairs(SOURCES, FILE_TYPES), ids="-".join)
def test_a_file_of_another_type(reference, tmp_path, case):
    source, kind = case
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
        elif tensor.tensor_type.name.endswith("_K"):
            expected = quantize(
                np.concatenate(list(old.stored().blocks())), tensor.tensor_type.name
            )
        else:
            values = np.concatenate(list(old.stored().blocks()))
            expected = theirs.quantize(values, tensor.tensor_type).view(np.uint8)
        assert np.array_equal(np.asarray(tensor.data).view(np.uint8).ravel(), expected.ravel())
    other = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}.get(kind, kind)  # for rows that are too short
    head = {"Q6_K", "Q8_0"} if kind in QUANTIZED else set()
    assert types <= {"F32", kind, other} | head and types & {kind, other}


def test_the_type_of_a_tensor():
    for name, shape, is_head, expected in (
        ("blk.0.attn_q.weight", (64, 64), False, "Q4_0"),
        ("blk.0.attn_norm.weight", (64,), False, "F32"),
        ("blk.0.ffn_gate_inp.weight", (8, 64), False, "F32"),
        ("position_embd.weight", (128, 64), False, "F32"),
        ("output.weight", (100, 64), True, "Q8_0"),
        ("blk.0.ffn_down.weight", (64, 40), False, "F16"),
        ("blk.0.ffn_down_exps.weight", (8, 64, 32), False, "Q4_0"),
        ("output.weight", (100, 256), True, "Q6_K"),
    ):
        assert type_for(name, shape, "Q4_0", is_head) == expected
    assert type_for("blk.0.attn_q.weight", (64, 256), "Q4_K", False) == "Q4_K"
    assert type_for("blk.0.attn_q.weight", (64, 64), "Q4_K", False) == "Q5_0"
    assert type_for("blk.0.attn_q.weight", (64, 40), "Q6_K", False) == "F16"
    assert type_for("output.weight", (100, 256), "Q8_0", True) == "Q8_0"
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
