"""Every op against its naive twin, over sizes that are not round."""

import ml_dtypes
import naive
import numpy as np
import pytest
from conftest import TINY
from ops import Buffer, call, out

from llama2np import kernels
from llama2np.kernels.matmul import float32
from llama2np.kernels.ops import attention, linear, positions, rows
from llama2np.kernels.ops.exp import argmax, exp
from llama2np.kernels.ops.weighted_sum import weighted_sum
from llama2np.kernels.runtime.jit import PLAIN, exact
from llama2np.model.block import NO_LIMIT
from llama2np.model.config import Config
from llama2np.model.state import State

SIZES = (1, 7, 64, 65, 200)
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
by_name = pytest.mark.skipif(PLAIN, reason="vectors by name need numba's compiler")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def close(fast, slow):
    np.testing.assert_allclose(fast, slow, rtol=2e-6, atol=2e-5)


def product(op, x, *matrices, block=1, members=1):
    """The outputs of one step of `op`: x times each of the matrices."""
    outs = [out(len(x), len(w)) for w in matrices]
    units = sum(-(-len(w) // block) for w in matrices)
    fields = {"w": list(matrices), "d": [len(w) for w in matrices], "out": outs}
    fields |= {"n": x.shape[1], "count": len(matrices), "x": Buffer(x)}
    call(op, len(x), units=units, work=2**20, members=members, **fields)  # enough to be shared
    return [each.rows for each in outs]


def few(x, *matrices, kind="float32", members=1):
    return product(linear.float_few(kind), x, *matrices, members=members)


def many(x, *matrices, kind="float32", members=1):
    op = linear.float_many(kind)
    return product(op, x, *matrices, block=float32.ROWS, members=members)


@pytest.mark.parametrize("n", (*SIZES, 31, 32, 172))
def test_few_tokens_times_a_matrix(n):
    for d in SIZES:
        w, x = normal(d, n), normal(float32.FEW, n, seed=1)
        alone = np.concatenate([few(row[None], w)[0] for row in x])
        close(alone, naive.matmul(w, x))
        for count in (2, 3, 5, float32.FEW):  # each token gets the bits that it has alone
            np.testing.assert_array_equal(few(x[:count], w)[0], alone[:count])


@by_name
@pytest.mark.parametrize("n", (*SIZES, 1024, 1025, 2100))
def test_many_tokens_times_a_matrix(n):
    """Past a block of k, a block of tokens and a block of rows: the bits of one token alone."""
    for d in (6, 7, 65):
        w, x = normal(d, n), normal(67, n, seed=1)
        alone = np.concatenate([few(row[None], w)[0] for row in x])
        if n < 500:
            close(alone, naive.matmul(w, x))
        for count in (1, 2, 3, 9, 17, 64, 65, 67):
            np.testing.assert_array_equal(many(x[:count], w)[0], alone[:count])


@pytest.mark.parametrize("members", (1, 2))
@pytest.mark.parametrize("form", ("few", "many"))
def test_matrices_that_share_an_input(form, members):
    """Up to four at once are what each is alone, to the bit; by a main thread that nobody helps."""
    if form == "many" and PLAIN:
        pytest.skip("vectors by name need numba's compiler")
    multiply = {"few": few, "many": many}[form]
    x, matrices = normal(9, 64, seed=9), [normal(d, 64, seed=d) for d in (520, 28, 7, 90)]
    for count in (2, 3, 4):
        found = multiply(x, *matrices[:count], members=members)
        for w, product in zip(matrices, found, strict=False):
            np.testing.assert_array_equal(product, few(x, w)[0])


@pytest.mark.parametrize("kind", ("bfloat16", "float16"))
def test_half_precision_is_float32_of_the_same_values(kind):
    """To the bit, for one, few and many tokens; subnormal, infinite and negative values, too."""
    w = (normal(65, 200) * 3).astype(DTYPES[kind])
    tiny = ml_dtypes.finfo(w.dtype).smallest_subnormal
    w[3, :5] = [tiny, -tiny, 3 * tiny, -0.0, ml_dtypes.finfo(w.dtype).max]
    w[7, 4], w[8, 4] = np.inf, -np.inf
    x, wide = normal(33, 200, seed=1), w.astype(np.float32)
    forms = ((few, 1), (few, 3), (few, 8)) + (() if PLAIN else ((many, 33), (many, 2)))
    for multiply, count in forms:
        with np.errstate(over="ignore"):
            found = multiply(x[:count], w.view(np.int16), kind=kind)[0]
            np.testing.assert_array_equal(found, multiply(x[:count], wide)[0])


@pytest.mark.parametrize("kind", DTYPES)
def test_embed(kind):
    table = normal(9, 7).astype(DTYPES[kind])
    tokens, found = np.array([8, 0, 3, 3]), out(4, 7)
    call(rows.embed_float(kind), 4, tokens=tokens, n=7, out=found, table=table)
    np.testing.assert_array_equal(found.rows, table[tokens].astype(np.float32))


@pytest.mark.parametrize("n", SIZES)
def test_norms_and_sums(n):
    x, y, weight, found = normal(3, n), normal(3, n, seed=2), normal(n, seed=1), out(3, n)
    call(rows.rmsnorm, 3, n=n, x=Buffer(x), out=found, weight=weight, eps=1e-5, groups=1)
    close(found.rows, naive.rmsnorm(x, weight, 1e-5))
    for bias in (0, normal(n, seed=3)):
        fields = {"weight": weight, "bias": bias, "eps": 1e-5}
        call(rows.layernorm, 3, n=n, x=Buffer(x + 7), out=found, **fields)
        np.testing.assert_allclose(
            found.rows, naive.layernorm(x + 7, weight, bias, 1e-5), rtol=1e-5, atol=1e-5
        )
    call(rows.add, 3, n=n, x=Buffer(x), y=Buffer(y), out=found)
    np.testing.assert_array_equal(found.rows, x + y)
    call(rows.add_bias, 3, n=n, x=Buffer(x), out=found, bias=weight)
    np.testing.assert_array_equal(found.rows, x + weight)
    call(rows.scale, 3, n=n, x=Buffer(x), out=found, factor=0.3)
    np.testing.assert_array_equal(found.rows, x * np.float32(0.3))


def test_an_output_may_be_where_the_first_input_is():
    """The arena uses places again."""
    x, y, weight = normal(3, 65), normal(3, 65, seed=2), normal(65, seed=1)
    for op, names, fields in (
        (rows.rmsnorm, ["x"], {"weight": weight, "eps": 1e-5, "groups": 1}),
        (rows.layernorm, ["x"], {"weight": weight, "bias": weight, "eps": 1e-5}),
        (rows.gelu, ["x"], {"exact": 0}),
        (rows.swiglu, ["gate", "up"], {}),
        (rows.add, ["x", "y"], {}),
    ):
        inputs = dict(zip(names, (x, y), strict=False))
        expected = out(3, 65)
        call(op, 3, n=65, out=expected, **{k: Buffer(v) for k, v in inputs.items()}, **fields)
        buffers = {name: Buffer(x) for name, x in inputs.items()}
        call(op, 3, n=65, out=buffers[names[0]], **buffers, **fields)
        np.testing.assert_array_equal(buffers[names[0]].rows, expected.rows)


@pytest.mark.parametrize("n", SIZES)
def test_activations(n):
    gate, up, found = normal(3, n) * 20, normal(3, n, seed=1), out(3, n)
    call(rows.swiglu, 3, n=n, gate=Buffer(gate), up=Buffer(up), out=found)
    close(found.rows, naive.swiglu(gate, up))
    for exactly in (0, 1):
        with np.errstate(over="ignore"):  # e**90 is inf, also in plain Python
            call(rows.gelu, 3, n=n, x=Buffer(gate), out=found, exact=exactly)
        close(found.rows, naive.gelu(gate, exactly))


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


@exact
def argmax_of(x):
    return argmax(x)


@pytest.mark.parametrize("n", SIZES)
def test_argmax_is_the_first_of_the_largest(n):
    x = normal(n)
    assert argmax_of(x) == x.argmax()
    x[[n // 3, n // 2]] = 9
    assert argmax_of(x) == n // 3
    assert argmax_of(-np.abs(x) - 1) == (-np.abs(x)).argmax()


@pytest.mark.parametrize("pairs", (1, 4, 33))
def test_angles(pairs):
    """Those of two sequences, at positions of their own."""
    frequencies = np.float32(1) / np.float32(1e4) ** np.linspace(0, 1, pairs, dtype=np.float32)
    cos, sin, states = out(7, pairs), out(7, pairs), [State(TINY), State(TINY)]
    states[0].pos, states[1].pos = 1000, 3
    fields = {"n": pairs, "cos": cos, "sin": sin, "frequencies": frequencies}
    fields |= {"modulus": NO_LIMIT, "most": NO_LIMIT, "magnitude": 1}
    call(positions.angles, 7, states, (5, 2), **fields)
    angles = np.concatenate(
        [naive.rope_angles(frequencies, pos, count) for pos, count in ((1000, 5), (3, 2))]
    )
    # an angle near 1000 is itself rounded to 3e-5
    np.testing.assert_allclose([cos.rows, sin.rows], [np.cos(angles), np.sin(angles)], atol=5e-5)


@pytest.mark.parametrize("halves", (0, 1))
@pytest.mark.parametrize("head_dim, rotary_dim", ((2, 2), (8, 8), (34, 34), (10, 4)))
def test_rope(head_dim, rotary_dim, halves):
    q, k = normal(5, 3 * head_dim), normal(5, 2 * head_dim, seed=1)
    angles = naive.rope_angles(1 / 100 ** np.linspace(0, 1, rotary_dim // 2), 3, 5)
    cos, sin = (Buffer(f(angles).astype(np.float32)) for f in (np.cos, np.sin))
    numbers = {"head_dim": head_dim, "rotary_dim": rotary_dim, "halves": halves}
    widths = {"q_width": q.shape[1], "k_width": k.shape[1]}
    fields = {"q": Buffer(q), "k": Buffer(k), "cos": cos, "sin": sin, **widths, **numbers}
    for elsewhere in (True, False):
        outs = (out(*q.shape), out(*k.shape)) if elsewhere else (fields["q"], fields["k"])
        call(positions.rope, 5, q_out=outs[0], k_out=outs[1], **fields)
        for found, x in zip(outs, (q, k), strict=True):
            close(found.rows, naive.rotate(x, angles, head_dim, rotary_dim, halves))


@pytest.mark.parametrize("window, softcap", ((0, 0), (1, 0), (9, 0), (64, 0), (100, 0), (0, 0.7)))
@pytest.mark.parametrize("kv_heads, head_dim", ((6, 2), (2, 8), (1, 64), (3, 34)))
def test_attention_over_a_cache_of_several_chunks(kv_heads, head_dim, window, softcap):
    """Keys and values go into the cache, and a later block attends to all of it, or to the last
    `window` positions; two sequences.
    """
    c = Config(6 * head_dim, 8, 2, 6, kv_heads, 8, 1000)
    states = [State(c), State(c)]
    for state in states:
        state.chunk = 64
    keys, values = [[], []], [[], []]
    numbers = {"layer": 1, "n_kv_heads": kv_heads, "head_dim": head_dim, "chunk": 64}
    for counts in ((1, 1), (7, 3), (60, 1), (1, 70)):
        count = sum(counts)
        q = normal(count, c.q_dim, seed=count)
        k, v = normal(count, c.kv_dim, seed=count + 1), normal(count, c.kv_dim, seed=count + 2)
        for state, some in zip(states, counts, strict=True):
            state.reserve(state.pos + some)
        k_rows, v_rows, found = Buffer(k), Buffer(v), out(*q.shape)
        call(attention.append, count, states, counts, n=c.kv_dim, k=k_rows, v=v_rows, **numbers)
        fields = {"q": Buffer(q), "out": found, "n_heads": 6, "n": c.q_dim, **numbers}
        fields |= {"causal": 1, "window": window or NO_LIMIT, "divisor": head_dim**0.5}
        fields |= {"softcap": softcap}
        call(attention.attend(False), count, states, counts, units=6, **fields)
        for i, state in enumerate(states):
            part = slice(sum(counts[:i]), sum(counts[: i + 1]))
            keys[i].append(k[part]), values[i].append(v[part])
            all_k, all_v = np.concatenate(keys[i]), np.concatenate(values[i])
            expected = naive.attention(q[part], all_k, all_v, head_dim, state.pos, window, softcap)
            close(found.rows[part], expected)
            state.pos += counts[i]
            shape = (state.pos, kv_heads, head_dim)
            np.testing.assert_array_equal(state.keys[1], all_k.reshape(shape).swapaxes(0, 1))
            np.testing.assert_array_equal(state.values[1], all_v.reshape(shape).swapaxes(0, 1))
            assert not state.keys[0].any() and not state.values[0].any()
    assert [len(state.addresses) for state in states] == [2, 2]


@exact
def fill(weights, rows, out, width):
    """Nine rows, the last four of them added to the sum of the others."""
    weighted_sum(weights, 2, 5, rows, 3, width + 1, out, 1, width, False)
    weighted_sum(weights, 7, 4, rows, 3 + 5 * (width + 1), width + 1, out, 1, width, True)


@pytest.mark.parametrize("width", (1, 7, 8, 16, 23, 32, 48, 57, 63, 64, 96, 200))
def test_weighted_sum_adds_in_order(width):
    """To the bit what a loop over float32 gives, whatever the vectors it is made of."""

    weights, rows, out = normal(11), normal(3 + 9 * (width + 1), seed=1), normal(width + 2)
    first, last = out[0], out[-1]
    expected = np.zeros(width, np.float32)
    for k in range(9):
        start = 3 + k * (width + 1)
        expected += weights[2 + k] * rows[start : start + width]
    fill(weights, rows, out, width)
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
    x, found = normal(9, 64), out(9, 64)
    x[:, 3] = np.nan
    for multiply in (few,) if PLAIN else (few, many):
        assert np.isnan(multiply(x, normal(64, 64))[0]).all()
    call(rows.rmsnorm, 9, n=64, x=Buffer(x), out=found, weight=normal(64), eps=1e-5, groups=1)
    assert np.isnan(found.rows).all()
    call(rows.swiglu, 9, n=64, gate=Buffer(x), up=Buffer(normal(9, 64)), out=found)
    assert np.isnan(found.rows[:, 3]).all() and np.isfinite(found.rows[:, :3]).all()
