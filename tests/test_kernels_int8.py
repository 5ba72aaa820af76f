"""The int8 ops against their naive twins, bit for bit, with every instruction set of this CPU."""

import naive
import numpy as np
import pytest
from conftest import examples, pairs, parameters
from hypothesis import given, settings
from hypothesis import strategies as st
from ops import Buffer, call, out

from llama2np.kernels.matmul import int8_dot, int8_isa, int8_tiles
from llama2np.kernels.matmul.int8 import int8_rows
from llama2np.kernels.ops import linear, rows
from llama2np.kernels.runtime.jit import exact

GROUPS = (1, 4, 7, 8, 16, 32, 48, 64, 96, 128)


def integers(*shape, seed=0):
    return np.random.default_rng(seed).integers(-128, 128, shape, np.int8)


def activations(*shape, seed=1):
    """As `quantize` gives them: never -128."""
    return np.maximum(integers(*shape, seed=seed), -127)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("case", pairs(int8_isa.usable(), (32, 64)), ids="{0[0]}-{0[1]}".format)
def test_products4(case):
    """Every instruction set, at odd offsets, with the largest products there are: equal bits."""
    isa, size = case
    products4 = int8_dot.products4(isa, size)

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


def test_the_instruction_sets_end_with_the_portable_one():
    assert int8_isa.usable()[-1] == "portable"
    assert int8_isa.ISA in int8_isa.usable()


def buffers(x, groups, tokens=None):
    """Where q, scales and sums of x (T, n) go, or with `tokens` those of its tiles."""
    shape = (tokens or len(x), groups)
    q = Buffer(np.full((tokens or len(x), x.shape[1]), 99, np.int8))
    return q, out(*shape), Buffer(np.full(shape, 99, np.int32))


def quantized(x, groups):
    """x: (T, n) -> q, scales, sums, as the op fills them."""
    q, scales, sums = buffers(x, groups)
    fields = {"n": x.shape[1], "group": x.shape[1] // groups, "x": Buffer(x)}
    call(linear.quantize, len(x), **fields, q=q, q_scales=scales, q_sums=sums)
    return q.rows, scales.rows, sums.rows


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("count", (1, 5))
def test_quantize(group, count):
    x = normal(count, 3 * group) * 100
    x[0, :group] = 0
    q, scales, sums = quantized(x, 3)
    expected = naive.quantize(x, group)
    np.testing.assert_array_equal(q, expected[0])
    np.testing.assert_array_equal(scales, expected[1])
    np.testing.assert_array_equal(sums, q.reshape(count, 3, group).sum(-1))
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


def check_matmul(matmul, count, d, group, groups, seed=0):
    q, x = integers(d, groups * group, seed=seed), activations(count, groups * group, seed=seed + 1)
    scales, x_scales = normal(d, groups, seed=seed), normal(count, groups, seed=seed + 1)
    x_sums = x.reshape(count, groups, group).sum(-1, dtype=np.int32)
    out = np.full((count, d), np.nan, np.float32)
    matmul(q, scales, x, x_scales, x_sums, out)
    np.testing.assert_array_equal(out, naive.matmul_int8(q, scales, x, x_scales))


@exact
def multiply_rows(q, scales, n, group, d, x, x_scales, x_sums, count, out, start, end):
    int8_rows(q, scales, n, group, d, x, x_scales, x_sums, count, out, start, end)


def by_rows(q, scales, x, x_scales, x_sums, out):
    (d, n), group, count = q.shape, q.shape[1] // scales.shape[1], len(x)
    q, scales, x, x_scales, x_sums, out = map(np.ravel, (q, scales, x, x_scales, x_sums, out))
    for start, end in ((0, d // 2), (d // 2, d)):
        multiply_rows(q, scales, n, group, d, x, x_scales, x_sums, count, out, start, end)


@pytest.mark.parametrize("group", GROUPS)
def test_rows(group):
    for d, groups in ((1, 1), (7, 3), (65, 6), (12, 5)):
        for tokens in (1, 5):
            check_matmul(by_rows, tokens, d, group, groups)


@settings(max_examples=examples(60))
@given(st.integers(1, 3), st.integers(1, 80), st.integers(1, 9), st.integers(0, 2**32 - 2))
def test_any_shape(tokens, group, groups, seed):
    check_matmul(by_rows, tokens, 3, group, groups, seed)


def product(x, groups, *matrices, tiles=False, members=1):
    """The outputs of the two steps that multiply x (T, n) by matrices (q, scales)."""
    n, count = x.shape[1], len(x)
    made = dict(zip(("q", "q_scales", "q_sums"), buffers(x, groups), strict=True))
    fields, each, block = {"n": n, "group": n // groups}, 1, 1
    if tiles:
        each, block = int8_tiles.NARROW, int8_tiles.ROWS
        names = ("tiles", "tiles_scales", "tiles_sums")
        made |= dict(zip(names, buffers(x, groups, -(-count // each) * each), strict=True))
    quantize = linear.quantize_tiles if tiles else linear.quantize
    work = 2**20  # enough to be shared
    call(quantize, count, each=each, work=work, members=members, x=Buffer(x), **fields, **made)
    outs = [out(count, len(q)) for q, _ in matrices]
    read = {name: buffer for name, buffer in made.items() if name.startswith("tiles") == tiles}
    units = sum(-(-len(q) // block) for q, _ in matrices)
    fields |= {"w": [q for q, _ in matrices], "scales": [scales for _, scales in matrices]}
    fields |= {"d": [len(q) for q, _ in matrices], "count": len(matrices), "out": outs}
    op = linear.int8_many if tiles else linear.int8_few
    call(op, count, units=units, work=work, members=members, **fields, **read)
    return [each.rows for each in outs]


@pytest.mark.parametrize("members", (1, 2))
@pytest.mark.parametrize("group", (32, 64, 96))
@pytest.mark.parametrize("count", (1, 2, int8_tiles.FEW, 33, 90))
def test_matrices_that_share_an_input(count, group, members):
    """Up to four at once, for few and many tokens; by a main thread that nobody helps."""
    matrices = [(integers(d, 3 * group, seed=d), normal(d, 3, seed=d)) for d in (200, 7, 33, 4)]
    x = normal(count, 3 * group, seed=1)
    expected = [naive.matmul_int8(*matrix, *naive.quantize(x, group)) for matrix in matrices]
    for tiles in (False, True) if linear.int8_many else (False,):
        for some in (1, 3, 4):
            found = product(x, 3, *matrices[:some], tiles=tiles, members=members)
            for one, other in zip(found, expected, strict=False):
                np.testing.assert_array_equal(one, other)


TILED = [isa for isa in int8_isa.usable() if isa != "portable"]


@pytest.mark.parametrize("group", (4, 32, 48, 64))
@pytest.mark.parametrize("isa", parameters(TILED, [isa for isa in TILED if isa != int8_isa.ISA]))
def test_tiles_with_every_instruction_set(isa, group):
    multiply, sums = int8_tiles.many(isa), np.zeros(int8_tiles.SUMS, np.float32)

    @exact
    def many(q, scales, n, size, d, x, x_scales, x_sums, tokens, out, first, last, sums):
        multiply(q, scales, n, size, d, x, x_scales, x_sums, tokens, out, first, last, sums)

    def matmul(q, scales, x, x_scales, x_sums, out):
        (count, n), d, units = x.shape, len(q), -(-len(q) // int8_tiles.ROWS)
        laid = [in_tiles(array) for array in (x.view(np.int32), x_scales, x_sums)]
        flat, whole, middle = out.reshape(-1), (q.reshape(-1), scales.reshape(-1)), units // 2
        for first, last in ((0, middle), (middle, units)):
            many(*whole, n, group, d, *laid, count, flat, first, last, sums)

    for count, d, groups in ((2, 4, 1), (16, 5, 2), (17, 12, 3), (64, 7, 1), (150, 9, 2)):
        check_matmul(matmul, count, d, group, groups)


@exact
def lay_out(x, tokens, n, first, last, out):
    int8_tiles.lay(x, tokens, n, int8_tiles.WIDE, first, last, out)


def in_tiles(x):
    """x (T, n) of 32-bit numbers as tiles, flat; what only fills the last one is 0."""
    count, n = x.shape
    narrow = -(-count // int8_tiles.NARROW)
    words = np.full(narrow * int8_tiles.NARROW * n, 99, np.int32)
    lay_out(x.view(np.int32).reshape(-1), count, n, 0, narrow, words)
    return words.view(x.dtype)


@pytest.mark.parametrize("count", (1, 16, 17, 64, 65, 150))
def test_tokens_are_laid_out_in_wide_tiles_and_then_narrow_ones(count):
    x = np.arange(count * 3, dtype=np.int32).reshape(count, 3) + 1
    narrow, wide = int8_tiles.NARROW, int8_tiles.WIDE
    laid, start = in_tiles(x), 0
    padded = np.concatenate([x, np.zeros((-count % narrow, 3), np.int32)])
    while start < len(padded):
        width = wide if len(padded) - start >= wide else narrow
        tile = laid[3 * start : 3 * (start + width)].reshape(3, width)
        np.testing.assert_array_equal(tile, padded[start : start + width].T)
        start += width


@pytest.mark.parametrize("group", (4, 32, 64))
def test_embed(group):
    q, scales = integers(9, 3 * group), normal(9, 3)
    tokens, found = np.array([8, 0, 3, 3]), out(4, 3 * group)
    fields = {"n": 3 * group, "group": group, "table": q, "scales": scales}
    call(rows.embed_int8, 4, tokens=tokens, out=found, **fields)
    np.testing.assert_array_equal(found.rows, q[tokens] * np.repeat(scales[tokens], group, axis=1))
