"""The number formats of GGUF: values equal to other programs' in every bit, and bad matrices."""

import numpy as np
import pytest

from llama2np.model.gguf_blocks import FORMATS, Blocks, dequantize
from llama2np.model.numpy_engine import multiply
from llama2np.model.weights import Dense, Weights, check_tensor


@pytest.fixture(scope="module")
def quants(reference):
    return np.load(reference / "gguf" / "quants.npz")


@pytest.mark.parametrize("kind", FORMATS)
def test_values_are_those_of_the_reference(quants, kind):
    blocks, values = quants[f"{kind}_blocks"], quants[f"{kind}_values"]
    assert blocks.shape[1] == FORMATS[kind].nbytes and values.shape[1] == FORMATS[kind].values
    assert np.array_equal(dequantize(blocks, kind).view(np.uint32), values.view(np.uint32))


@pytest.mark.parametrize("kind", FORMATS)
def test_numbers_and_sizes_are_those_of_the_package_gguf(kind):
    gguf = pytest.importorskip("gguf")
    number = gguf.GGMLQuantizationType[kind]
    assert FORMATS[kind].number == number
    assert gguf.GGML_QUANT_SIZES[number] == (FORMATS[kind].values, FORMATS[kind].nbytes)


@pytest.mark.parametrize("kind", FORMATS)
def test_any_bytes_are_numbers_without_a_warning(kind):
    rng = np.random.default_rng(5)
    data = rng.integers(0, 256, (64, 3 * FORMATS[kind].nbytes), np.uint8)
    data[0], data[1, ::2], data[1, 1::2] = 255, 0, 0x7C  # nan, and inf
    assert dequantize(data, kind).dtype == np.float32


def test_a_matrix_of_blocks(quants):
    values = quants["Q4_K_values"].reshape(16, 768)
    matrix = Blocks(quants["Q4_K_blocks"].reshape(16, -1), "Q4_K")
    assert matrix.shape == (16, 768) and matrix.n == 768 and repr(matrix) == "Blocks(16, 768)[Q4_K]"
    check_tensor("layers.1.wq", matrix, (16, 768))
    rows = np.array([5, 2, 5])
    assert np.array_equal(matrix.rows(rows), values[rows])
    assert np.array_equal(matrix.dequantize(), values)
    x = np.random.default_rng(1).standard_normal((3, 768), np.float32)
    assert np.array_equal(multiply(matrix, x), multiply(Dense(values), x))
    some = matrix[2:5]
    assert np.shares_memory(some.data, matrix.data) and some.shape == (3, 768)
    own = Weights({"embedding": matrix, "classifier": matrix}).own()
    assert own["classifier"] is own["embedding"] and own["embedding"].kind == "Q4_K"
    assert own["embedding"].data is not matrix.data
    assert np.shares_memory(own["embedding"].data, matrix.data) and own.nbytes == 16 * 432


def test_stacked_matrices(quants):
    stack = Blocks(quants["Q5_0_blocks"].reshape(4, 3, -1), "Q5_0")
    values = quants["Q5_0_values"].reshape(4, 3, -1)
    assert stack.shape == (4, 3, 128) and stack[2].shape == (3, 128)
    assert np.array_equal(stack.dequantize(), values)
    assert np.array_equal(stack[2].dequantize(), values[2])


def test_a_bad_matrix_is_an_error():
    good = np.zeros((4, 36), np.uint8)
    check_tensor("wq", Blocks(good, "Q4_0"), (4, 64))
    for matrix, message in (
        (Blocks(good, "Q9_9"), "is of kind 'Q9_9', expected one of Q4_0, "),
        (
            Blocks(good[:, :20], "Q4_0"),
            r"strides \(36, 1\), expected np.ascontiguousarray of uint8",
        ),
        (Blocks(good.view(np.int8), "Q4_0"), "is int8"),
        (Blocks(good[:, :0], "Q4_0"), r"Q4_0 data have shape \(4, 0\)"),
        (Blocks(good.reshape(2, 2, 36), "Q4_0"), r"shape \(2, 2, 36\)"),
        (Blocks(np.zeros((4, 20), np.uint8), "Q4_0"), "a multiple of 18 bytes"),
    ):
        with pytest.raises(ValueError, match=message):
            matrix.check("wq of layer 1")
    with pytest.raises(ValueError, match=r"wq has shape \(4, 64\), expected \(4, 32\)"):
        check_tensor("wq", Blocks(good, "Q4_0"), (4, 32))
