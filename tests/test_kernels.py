"""Every kernel against its naive twin, over sizes that are not round."""

import naive
import numba
import numpy as np
import pytest

from llama2np import kernels
from llama2np.kernels import multiply as multiply_
from llama2np.kernels.exp import exp
from llama2np.kernels.jit import exact
from llama2np.kernels.lanes import weighted_sum
from llama2np.model.weights import Dense, Int8, in_tiles

SIZES = (1, 7, 64, 65, 200)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def close(fast, slow):
    np.testing.assert_allclose(fast, slow, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("members", (1, 2, 5))
@pytest.mark.parametrize("n", (*SIZES, 31, 32, 172))
def test_matmul(n, members):
    for d in SIZES:
        w, x, out = normal(d, n), normal(1, n, seed=1), np.full((1, d), np.nan, np.float32)
        kernels.matmul(w, x, out, members)
        close(out, naive.matmul(w, x))


@pytest.mark.parametrize("members", (1, 2, 5))
@pytest.mark.parametrize("shape", ((600, 172), (33, 1000), (33000, 1), (4099, 64), (263, 1000)))
def test_matmul_by_a_team(shape, members):
    """More than there are processors, too: those that come too late find nothing to do."""
    w, x = normal(*shape), normal(1, shape[1], seed=1)
    alone, out = np.zeros((1, shape[0]), np.float32), np.full((1, shape[0]), np.nan, np.float32)
    kernels.matmul(w, x, alone, 1)
    kernels.matmul(w, x, out, members)
    np.testing.assert_array_equal(out, alone)
    close(out, naive.matmul(w, x))


@pytest.mark.parametrize("members", (1, 2))
@pytest.mark.parametrize("kind", ("float32", "int8"))
def test_matrices_that_share_an_input(kind, members):
    """Two or three at once are what each is alone, to the bit; by a leader whom no one helps."""
    x, shapes = normal(1, 64, seed=9), (520, 28, 90)
    room = (x,)
    if kind == "float32":
        matrices = [Dense(normal(d, 64, seed=d)) for d in shapes]
        multiply = multiply_.multiply_float32
    else:
        pairs = ((normal(d, 64, seed=d) * 40, normal(d, 2, seed=d)) for d in shapes)
        matrices = [Int8(q.astype(np.int8), scales) for q, scales in pairs]
        multiply = multiply_.multiply_int8
        room = tuple(np.zeros((1, n), kind) for n, kind in ((64, "i1"), (2, "f4"), (2, "i4")))
    for count in (1, 2, 3):
        outs = [np.zeros((1, d), np.float32) for d in shapes]
        leader = np.zeros(48, np.int64), 0, members
        step = multiply(leader, 1, count, *(m.arrays for m in matrices), x, room, *outs)
        assert step == (1 if numba.config.BOUNDSCHECK else members)  # 2: this one was opened
        for i, (matrix, out) in enumerate(zip(matrices, outs, strict=True)):
            expected = np.zeros_like(out)
            if i < count:
                matrix(x, expected)
            np.testing.assert_array_equal(out, expected)


@pytest.mark.skipif(kernels.matmul_few is None, reason="vectors by name need numba's compiler")
@pytest.mark.parametrize("n", (*SIZES, 31, 32, 172))
def test_matmul_of_a_few_tokens(n):
    """Each of them gets the bits that it has alone."""
    w, x = normal(33, n), normal(kernels.FEW, n, seed=1)
    alone = np.zeros((kernels.FEW, 33), np.float32)
    for t in range(kernels.FEW):
        kernels.matmul(w, x[t : t + 1], alone[t : t + 1], 1)
    for count in range(1, kernels.FEW + 1):
        out = np.full((count, 33), np.nan, np.float32)
        kernels.matmul_few(w, x[:count], out)
        np.testing.assert_array_equal(out, alone[:count])


@pytest.mark.skipif(kernels.matmul_tiles is None, reason="vectors by name need numba's compiler")
@pytest.mark.parametrize("n", SIZES)
def test_matmul_of_tiles(n):
    for d in (6, 7, 65):
        for rows in (1, 2, 15, 16, 17, 63, 64, 65, 150):
            w, x, out = (
                normal(d, n),
                normal(rows, n, seed=1),
                np.full((rows, d), np.nan, np.float32),
            )
            kernels.matmul_tiles(w, in_tiles(x), out)
            close(out, naive.matmul(w, x))


@pytest.mark.skipif(kernels.matmul_tiles is None, reason="vectors by name need numba's compiler")
def test_tiles_give_the_same_however_a_prompt_is_cut():
    w, x = normal(70, 200), normal(100, 200, seed=1)
    whole = np.zeros((100, 70), np.float32)
    kernels.matmul_tiles(w, in_tiles(x), whole)
    for start, end in ((0, 1), (3, 70), (90, 100)):
        part = np.zeros((end - start, 70), np.float32)
        kernels.matmul_tiles(w, in_tiles(x[start:end]), part)
        np.testing.assert_array_equal(part, whole[start:end])


@pytest.mark.parametrize("n", SIZES)
def test_rmsnorm_and_add(n):
    x, weight, out = normal(3, n), normal(n, seed=1), np.zeros((3, n), np.float32)
    kernels.rmsnorm(x, weight, np.float32(1e-5), out)
    close(out, naive.rmsnorm(x, weight, 1e-5))
    total = x.copy()
    kernels.add(total, out)
    np.testing.assert_array_equal(total, x + out)


@pytest.mark.parametrize("n", SIZES)
def test_swiglu(n):
    gate, up = normal(3, n) * 20, normal(3, n, seed=1)
    expected = naive.swiglu(gate, up)
    kernels.swiglu(gate, up)
    close(gate, expected)


@exact
def exp_of_all(x, out):
    for i in range(x.size):
        out[i] = exp(x[i])


def test_exp_is_rounded_from_float64():
    x = np.concatenate([np.linspace(-110, 90, 2001), [-np.inf, np.inf, np.nan, -0.0, 1e-30]])
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
        expected = np.exp(x.astype(float)).astype(np.float32)
        found = np.zeros_like(x)
        exp_of_all(x, found)
    np.testing.assert_array_max_ulp(found, expected, 1)
    assert (found != expected)[~np.isnan(x)].sum() <= 2


@pytest.mark.parametrize("pairs", (1, 4, 33))
def test_rope_angles(pairs):
    frequencies = np.float32(1) / np.float32(1e4) ** np.linspace(0, 1, pairs, dtype=np.float32)
    cos, sin = np.zeros((5, pairs), np.float32), np.zeros((5, pairs), np.float32)
    kernels.rope_angles(frequencies, 1000, cos, sin)
    angles = naive.rope_angles(frequencies, 1000, 5)
    # an angle near 1000 is itself rounded to 3e-5
    np.testing.assert_allclose([cos, sin], [np.cos(angles), np.sin(angles)], atol=5e-5)


@pytest.mark.parametrize("attention", (kernels.attention, kernels.attention_threaded))
@pytest.mark.parametrize("kv_heads, head_dim", ((6, 2), (2, 8), (1, 64), (3, 34)))
def test_rope_and_attention(attention, kv_heads, head_dim):
    """Rotated keys and values go into the cache, and a later block attends to all of it."""
    capacity, n_heads, pairs = 2 * kernels.BLOCK, 6, head_dim // 2
    frequencies = 1 / 1e4 ** (np.arange(pairs, dtype=np.float32) / pairs).astype(np.float32)
    keys = np.zeros((kv_heads, 2, head_dim, kernels.BLOCK), np.float32)
    values = np.full((kv_heads, capacity, head_dim), np.nan, np.float32)
    scores = np.full((n_heads * kernels.TOGETHER, capacity), np.nan, np.float32)
    slow_k, slow_v = [], []
    for pos, count in ((0, 1), (1, 7), (8, 60)):
        q = normal(count, n_heads * head_dim, seed=pos)
        k = normal(count, kv_heads * head_dim, seed=pos + 1)
        v = normal(count, kv_heads * head_dim, seed=pos + 2)
        angles = naive.rope_angles(frequencies, pos, count)
        slow_q = naive.rotate(q, angles, head_dim)
        slow_k.append(naive.rotate(k, angles, head_dim))
        slow_v.append(v)
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        kernels.rope(q, k, v, cos, sin, pos, keys, values)
        close(q, slow_q)
        out = np.full_like(q, np.nan)
        attention(q, keys, values, pos, scores, out)
        expected = naive.attention(
            slow_q, np.concatenate(slow_k), np.concatenate(slow_v), head_dim, pos
        )
        close(out, expected)
        by_position = keys.transpose(1, 3, 0, 2).reshape(capacity, -1)
        close(by_position[: pos + count], np.concatenate(slow_k))
        assert not by_position[pos + count :].any()
    assert np.isnan(values[:, 68:]).all()


@pytest.mark.parametrize("width", (1, 7, 8, 16, 23, 32, 48, 57, 63, 64, 96, 200))
def test_weighted_sum_adds_in_order(width):
    """To the bit what a loop over float32 gives, whatever the vectors it is made of."""

    @exact
    def fill(weights, rows, out):
        weighted_sum(weights, 2, 5, rows, 3, width + 1, out, 1, width, False)
        weighted_sum(weights, 7, 4, rows, 3 + 5 * (width + 1), width + 1, out, 1, width, True)

    weights, rows, out = normal(11), normal(3 + 9 * (width + 1), seed=1), normal(width + 2)
    first, last = out[0], out[-1]
    expected = np.zeros(width, np.float32)
    for k in range(9):
        start = 3 + k * (width + 1)
        expected += weights[2 + k] * rows[start : start + width]
    fill(weights, rows, out)
    np.testing.assert_array_equal(out[1:-1], expected)
    assert out[0] == first and out[-1] == last


@pytest.mark.parametrize("temperature", (0.1, 1.0, 3.0))
@pytest.mark.parametrize("n", SIZES)
def test_softmax(n, temperature):
    logits, out = normal(n) * 5, np.zeros(n, np.float32)
    kernels.softmax(logits, np.float32(temperature), out)
    close(out, naive.softmax(logits.astype(float) / temperature))


def test_nan_and_infinity_pass_through():
    """The sampler must see them: no kernel may take them for impossible."""
    x, out = normal(1, 64), np.zeros((1, 64), np.float32)
    x[0, 3] = np.nan
    for members in (1, 2):
        kernels.matmul(normal(64, 64), x, out, members)
        assert np.isnan(out).all()
    kernels.rmsnorm(x, normal(64), np.float32(1e-5), out)
    assert np.isnan(out).all()
    kernels.swiglu(x, normal(1, 64))
    assert np.isnan(x[0, 3]) and np.isfinite(x[0, :3]).all()
