"""The int8 kernels against their naive twins, bit for bit, in every flavour this CPU can run."""

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2np import kernels
from llama2np.kernels import int8_dot
from llama2np.kernels.jit import exact

GROUPS = (1, 4, 7, 8, 16, 32, 48, 64, 96, 128)


def integers(*shape, seed=0):
    return np.random.default_rng(seed).integers(-128, 128, shape, np.int8)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("flavour", int8_dot.flavours())
def test_dots(flavour):
    """Each flavour's sums, at every offset, with the largest products there are."""
    dot32, dot64 = int8_dot.dots(flavour)

    @exact
    def both(a, b, start):
        return dot32(a, b, start), dot64(a, b, start)

    extreme = np.full(200, -128, np.int8)
    for a, b in ((integers(200), integers(200, seed=1)), (extreme, extreme)):
        for start in range(0, 137, 7):
            products = a.astype(int)[start:] * b.astype(int)[start:]
            assert both(a, b, start) == (products[:32].sum(), products[:64].sum())


def test_flavours_end_with_the_portable_one():
    assert int8_dot.flavours()[-1] == "portable"
    assert int8_dot.FLAVOUR in int8_dot.flavours()


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("rows", (1, 5))
def test_quantize(group, rows):
    x = normal(rows, 3 * group) * 100
    x[0, :group] = 0
    q, scales = np.full(x.shape, 99, np.int8), np.zeros((rows, 3), np.float32)
    kernels.quantize(x, q, scales)
    expected = naive.quantize(x, group)
    np.testing.assert_array_equal(q, expected[0])
    np.testing.assert_array_equal(scales, expected[1])
    assert not q[0, :group].any() and scales[0, 0] == 0


def test_quantize_rounds_halves_away_from_zero():
    below_half = np.nextafter(np.float32(0.5), np.float32(0))
    x = np.array([[127, 0.5, -0.5, 1.5, -2.5, below_half, -below_half, 126.5]], np.float32)
    q, scales = np.zeros(x.shape, np.int8), np.zeros((1, 1), np.float32)
    kernels.quantize(x, q, scales)
    assert q.tolist() == [[127, 1, -1, 2, -3, 0, 0, 127]] and scales[0, 0] == 1


@pytest.mark.parametrize("broken", (np.nan, np.inf))
def test_quantize_does_not_hide_what_is_not_finite(broken):
    x, q, scales = normal(1, 64), np.zeros((1, 64), np.int8), np.zeros((1, 2), np.float32)
    x[0, 40] = broken
    kernels.quantize(x, q, scales)
    assert np.isfinite(scales[0, 0]) and not np.isfinite(scales[0, 1])


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("matmul", (kernels.matmul_int8, kernels.matmul_int8_threaded))
def test_matmul(matmul, group):
    for rows, d, groups in ((1, 1, 1), (1, 7, 3), (6, 65, 2), (17, 12, 5)):
        q, x = integers(d, groups * group), integers(rows, groups * group, seed=1)
        scales, x_scales = normal(d, groups, seed=2), normal(rows, groups, seed=3)
        out = np.full((rows, d), np.nan, np.float32)
        matmul(q, scales, x, x_scales, out)
        np.testing.assert_array_equal(out, naive.matmul_int8(q, scales, x, x_scales))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 80), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_any_group_size(group, groups, seed):
    q, x = integers(3, groups * group, seed=seed), integers(2, groups * group, seed=seed + 1)
    scales, x_scales = normal(3, groups, seed=seed), normal(2, groups, seed=seed + 1)
    out = np.zeros((2, 3), np.float32)
    kernels.matmul_int8(q, scales, x, x_scales, out)
    np.testing.assert_array_equal(out, naive.matmul_int8(q, scales, x, x_scales))


@pytest.mark.parametrize("group", (4, 32, 64))
def test_dequantize_rows(group):
    q, scales = integers(9, 3 * group), normal(9, 3)
    rows, out = np.array([8, 0, 3, 3]), np.zeros((4, 3 * group), np.float32)
    kernels.dequantize_rows(q, scales, rows, out)
    np.testing.assert_array_equal(out, q[rows] * np.repeat(scales[rows], group, axis=1))
