"""The int8 kernels against their naive twins, bit for bit, in every flavour this CPU can run."""

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2np import kernels
from llama2np.kernels import int8, int8_dot, int8_flavours, int8_tiles
from llama2np.kernels.jit import exact
from llama2np.model.weights import in_tiles

GROUPS = (1, 4, 7, 8, 16, 32, 48, 64, 96, 128)


def integers(*shape, seed=0):
    return np.random.default_rng(seed).integers(-128, 128, shape, np.int8)


def activations(*shape, seed=1):
    """As `quantize` gives them: never -128."""
    return np.maximum(integers(*shape, seed=seed), -127)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("size", (32, 64))
@pytest.mark.parametrize("flavour", int8_flavours.usable())
def test_products4(flavour, size):
    """Every flavour, at odd offsets, with the largest products there are: equal bits."""
    products4 = int8_dot.products4(flavour, size)

    @exact
    def four(a, i, b, j, a_scales, s, b_scales, b_sums, r):
        return products4(a, i, b, j, a_scales, s, b_scales, b_sums, r)

    least, most = np.full(400, -128, np.int8), np.full(400, 127, np.int8)
    a_scales, b_scales = normal(9), normal(9, seed=1)
    for a, b in ((integers(400), activations(400)), (least, most), (least, -most), (most, most)):
        for i, j, s, r in ((0, 0, 0, 0), (3, 7, 2, 5)):
            groups = [
                (a[i + k * size :][:size].astype(int), b[j + k * size :][:size].astype(int))
                for k in range(4)
            ]
            b_sums = np.zeros(9, np.int32)
            b_sums[r : r + 4] = [group.sum() for _, group in groups]
            found = four(a, i, b, j, a_scales, s, b_scales, b_sums, r)
            for k, (left, right) in enumerate(groups):
                product = np.float32(left @ right)
                assert found[k] == product * a_scales[s + k] * b_scales[r + k]


def test_flavours_end_with_the_portable_one():
    assert int8_flavours.usable()[-1] == "portable"
    assert int8_flavours.FLAVOUR in int8_flavours.usable()


def quantized(x, groups):
    """x: (T, n) -> q, scales, sums, as the kernel fills them."""
    q = np.full(x.shape, 99, np.int8)
    scales, sums = np.zeros((len(x), groups), np.float32), np.zeros((len(x), groups), np.int32)
    kernels.quantize(x, q, scales, sums)
    return q, scales, sums


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("rows", (1, 5))
def test_quantize(group, rows):
    x = normal(rows, 3 * group) * 100
    x[0, :group] = 0
    q, scales, sums = quantized(x, 3)
    expected = naive.quantize(x, group)
    np.testing.assert_array_equal(q, expected[0])
    np.testing.assert_array_equal(scales, expected[1])
    np.testing.assert_array_equal(sums, q.reshape(rows, 3, group).sum(-1))
    assert not q[0, :group].any() and scales[0, 0] == 0


def test_quantize_rounds_halves_away_from_zero():
    below_half = np.nextafter(np.float32(0.5), np.float32(0))
    x = np.array([[127, 0.5, -0.5, 1.5, -2.5, below_half, -below_half, 126.5]], np.float32)
    q, scales, _ = quantized(x, 1)
    assert q.tolist() == [[127, 1, -1, 2, -3, 0, 0, 127]] and scales[0, 0] == 1


@pytest.mark.parametrize("broken", (np.nan, np.inf))
def test_quantize_does_not_hide_what_is_not_finite(broken):
    x = normal(1, 64)
    x[0, 40] = broken
    _, scales, _ = quantized(x, 2)
    assert np.isfinite(scales[0, 0]) and not np.isfinite(scales[0, 1])


def check_matmul(matmul, rows, d, group, groups, seed=0):
    q, x = integers(d, groups * group, seed=seed), activations(rows, groups * group, seed=seed + 1)
    scales, x_scales = normal(d, groups, seed=seed), normal(rows, groups, seed=seed + 1)
    x_sums = x.reshape(rows, groups, group).sum(-1, dtype=np.int32)
    out = np.full((rows, d), np.nan, np.float32)
    matmul(q, scales, x, x_scales, x_sums, out)
    np.testing.assert_array_equal(out, naive.matmul_int8(q, scales, x, x_scales))


def by_rows(q, scales, x, x_scales, x_sums, out):
    middle = len(q) // 2
    for start, end in ((0, middle), (middle, len(q))):
        int8.int8_rows(q, scales, start, end, x, x_scales, x_sums, out)


@pytest.mark.parametrize("group", GROUPS)
def test_rows(group):
    for d, groups in ((1, 1), (7, 3), (65, 6), (12, 5)):
        for tokens in (1, 5):
            check_matmul(by_rows, tokens, d, group, groups)


@settings(max_examples=60)
@given(st.integers(1, 3), st.integers(1, 80), st.integers(1, 9), st.integers(0, 2**32 - 2))
def test_any_shape(tokens, group, groups, seed):
    check_matmul(by_rows, tokens, 3, group, groups, seed)


@pytest.mark.parametrize("members", (1, 2, 5))
@pytest.mark.parametrize("group", (32, 64, 96))
@pytest.mark.parametrize("tokens", (1, 2, kernels.INT8_FEW))
def test_matmul(tokens, group, members):
    q, scales, x = integers(200, 3 * group), normal(200, 3), normal(tokens, 3 * group, seed=1)
    out = np.full((tokens, 200), np.nan, np.float32)
    kernels.matmul_int8(q, scales, x, out, members)
    np.testing.assert_array_equal(out, naive.matmul_int8(q, scales, *naive.quantize(x, group)))


@pytest.mark.parametrize("group", (4, 32, 48, 64))
@pytest.mark.parametrize("flavour", [f for f in int8_flavours.usable() if f != "portable"])
def test_matmul_of_tiles(flavour, group):
    kernel = int8_tiles.matmul_by_tiles(flavour)

    def matmul(q, scales, x, x_scales, x_sums, out):
        kernel(q, scales, *map(in_tiles, (x.view(np.int32), x_scales, x_sums)), out)

    for rows, d, groups in ((2, 4, 1), (16, 5, 2), (17, 12, 3), (64, 7, 1), (150, 9, 2)):
        check_matmul(matmul, rows, d, group, groups)


@pytest.mark.parametrize("group", (4, 32, 64))
def test_dequantize_rows(group):
    q, scales = integers(9, 3 * group), normal(9, 3)
    rows, out = np.array([8, 0, 3, 3]), np.zeros((4, 3 * group), np.float32)
    kernels.dequantize_rows(q, scales, rows, out)
    np.testing.assert_array_equal(out, q[rows] * np.repeat(scales[rows], group, axis=1))
