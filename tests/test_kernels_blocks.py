"""Matrices in GGUF's blocks: the compiled ops against NumPy, and the same bits in each way."""

import naive
import numpy as np
import pytest
from conftest import parameters
from networks import tiny, weights_of
from ops import Buffer, call, out
from ops import random_blocks as matrix

from llama2np.formats import gguf
from llama2np.kernels.matmul import block_panels, block_rows, block_tiles, int8_isa, int8_tiles
from llama2np.kernels.matmul.block_kinds import KINDS
from llama2np.kernels.matmul.block_unpack import order
from llama2np.kernels.ops import linear, rows
from llama2np.kernels.runtime.jit import PLAIN, exact
from llama2np.model import gguf_blocks
from llama2np.model.transformer import State, Transformer
from llama2np.model.weights import Weights

# One of each way in which a kernel may differ: int8; offsets and single bits; 256 values in groups
# of 16, or in groups of 32, and a table.
SOME = ("Q8_0", "Q5_1", "Q6_K", "IQ4_XS")
# The kinds that are always tested: in products of few tokens; and in `embed`, which is compiled
# faster, so other ways of unpacking a block are tested there (single bits, a table, digits to base
# three). The tables of all kinds are compared below, without a compiler.
OFTEN_FEW = ("Q8_0", "Q6_K", "Q4_K")
OFTEN_ROWS = ("Q8_0", "Q6_K", "Q5_1", "IQ4_XS", "TQ1_0")
OTHERS = [isa for isa in int8_isa.usable() if isa != int8_isa.ISA]
vectors = pytest.mark.skipif(PLAIN, reason="plain loops do not use vector instructions")


def normal(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def quantized(x, group, terms=1, tiles=False, members=1):
    """The input of the products, as the ops make it: buffers by the names of the fields."""
    count, n = x.shape
    width = block_rows.padded_width(n)
    shapes = {"": (np.int8, width), "_scales": (np.float32, width // group)}
    shapes |= {"_sums": (np.int32, width // group), "_offsets": (np.float32, width // group)}
    made = {f"q{k}": Buffer(np.full((count * terms, w), 99, t)) for k, (t, w) in shapes.items()}
    each, op = 1, linear.quantize_for_blocks
    if tiles:
        each, op = int8_tiles.NARROW, linear.quantize_block_tiles
        padded = -(-count * terms // int8_tiles.NARROW) * int8_tiles.NARROW
        made |= {f"tiles{k}": Buffer(np.full((padded, w), 99, t)) for k, (t, w) in shapes.items()}
    fields = {"wide": block_tiles.WIDE} if tiles else {}
    fields |= {"parts": 1, "n": n, "group": group, "terms": terms, "x": Buffer(x)}
    call(op, count, each=each, work=2**20, members=members, **fields, **made)
    start = "tiles" if tiles else "q"
    return {name: buffer for name, buffer in made.items() if name.startswith(start)}


def product(x, *matrices, terms=1, tiles=False, members=1):
    """The outputs of the two steps that multiply x (T, n) by matrices of one kind."""
    kind, count = matrices[0].kind, len(x)
    made = quantized(x, KINDS[kind].group, terms, tiles, members)
    outs = [out(count, len(each.data)) for each in matrices]
    block = block_tiles.ROWS if tiles else 1
    fields = {"n": x.shape[1], "group": KINDS[kind].group, "terms": terms, "out": outs}
    fields |= {"w": [each.data for each in matrices], "d": [len(each.data) for each in matrices]}
    op = (linear.blocks_many if tiles else linear.blocks_few)(kind)
    units = sum(-(-len(each.data) // block) for each in matrices)
    call(op, count, units=units, work=2**20, members=members, count=len(matrices), **fields, **made)
    return [each.rows for each in outs]


@pytest.mark.parametrize("group", (16, 32))
def test_quantize(group):
    x = normal(3, 160) * 100
    x[0, :32] = 0
    made = quantized(x, group, terms=1)
    q, scales = naive.quantize_for_blocks(x)
    place = [i for some in order(16 if PLAIN else group, 256) for i in some]
    found = np.zeros((3, 256), np.int8)
    found[:, place] = made["q"].rows
    np.testing.assert_array_equal(found[:, 160:], 0)
    difference = np.abs(found[:, :160] - q)
    assert difference.max() <= PLAIN and not found[0, :32].any()  # PLAIN: ties
    sums = found.reshape(3, -1, group).sum(-1)
    np.testing.assert_array_equal(made["q_sums"].rows, sums)
    of_groups = np.zeros((3, 256 // group), np.float32)
    of_groups[:, : 160 // group] = np.repeat(scales, 32 // group, axis=1)
    np.testing.assert_array_equal(made["q_scales"].rows, of_groups)
    np.testing.assert_array_equal(made["q_offsets"].rows, of_groups * sums.astype(np.float32))


@pytest.mark.parametrize("broken", (np.nan, np.inf))
def test_quantize_does_not_hide_what_is_not_finite(broken):
    x = normal(1, 64)
    x[0, 40] = broken
    with np.errstate(invalid="ignore"):  # plain loops are NumPy's without numba's compiler
        scales = quantized(x, 32)["q_scales"].rows
        (found,) = product(x, matrix("Q8_0", 3, 64))
    assert np.isfinite(scales[0, 0]) and not np.isfinite(scales[0, 1])
    assert not np.isfinite(found).any()


def test_two_terms_are_nearly_exact():
    x, w = normal(2, 576), matrix("Q8_0", 6, 576)
    (found,) = product(x, w, terms=2)
    expected, size = naive.matmul_blocks(w.dequantize(), x, terms=2)
    assert (np.abs(found - expected) < 1e-6 * size).all()
    assert (np.abs(found - naive.matmul(w.dequantize(), x)) < 1e-4 * size).all()


@pytest.mark.parametrize("kind", parameters(KINDS, OFTEN_FEW))
def test_a_small_batch(kind):
    """Against NumPy, over odd sizes: blocks that are left over, one row, one block."""
    small = KINDS[kind].values == 32
    for d, n in ((1, 32), (5, 96), (3, 576), (7, 2112)) if small else ((1, 256), (3, 1280)):
        for count in (1, 3):
            w, x = matrix(kind, d, n, d), normal(count, n, seed=n)
            (found,) = product(x, w)
            expected, size = naive.matmul_blocks(w.dequantize(), x)
            assert (np.abs(found - expected) < 1e-6 * size).all()


@pytest.mark.compiled
@pytest.mark.parametrize("members", (1, 2))
@pytest.mark.parametrize("kind", parameters(SOME, ("Q8_0", "Q6_K")))
def test_the_bits_do_not_depend_on_the_batch(kind, members):
    """One token, few, many, in tiles; up to four matrices; one row of the matrix or many."""
    n, terms = 512, 2 if kind == "Q8_0" else 1
    some = [matrix(kind, d, n, d) for d in (70, 13, 33, 12)]
    x = normal(90, n)
    expected = [
        np.concatenate([product(row[None], each, terms=terms)[0] for row in x[[0, 5, 89]]])
        for each in some
    ]
    for tiles in (False, True) if not PLAIN else (False,):
        for count in (1, 2, block_rows.FEW, 33, 90) if not PLAIN else (2,):
            found = product(x[-count:], *some, terms=terms, tiles=tiles, members=members)
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one[-1], other[-1])
    if not PLAIN:
        for one, other in zip(product(x, *some, terms=terms, tiles=True), expected, strict=True):
            np.testing.assert_array_equal(one[[0, 5, 89]], other)


def mixture(kind, dim, hidden):
    """A network of one layer whose matrices, also those of its experts, are in blocks."""
    config, tensors = tiny(
        "mixtral", dim=dim, hidden_dim=hidden, n_layers=1, n_heads=4, n_kv_heads=4, seq_len=64
    )
    weights = dict(weights_of(tensors))
    for seed, (name, tensor) in enumerate(weights.items()):
        if ".w" in name:
            weights[name] = matrix(kind, *tensor.shape, seed, 0.001)
    return config, Weights(weights)


@pytest.mark.compiled
@pytest.mark.parametrize("kind", parameters(("Q8_0", "Q5_1"), ("Q8_0",)))
@pytest.mark.parametrize("activations", ("int8", "int8x2"))
def test_experts_in_tiles_give_the_same_bits(activations, kind):
    """One token at a time, and up to 60, of which each expert has few or many."""
    config, weights = mixture(kind, 64, 96)
    model = Transformer(config, weights, activations=activations)
    tokens, state = np.arange(60) % config.vocab_size, State(config)
    expected = np.stack([model.forward([token], state) for token in tokens])
    assert np.isfinite(expected).all() and expected.std() > 0.1
    for count in (7, 60):
        found = model.forward(tokens[:count], State(config), True)
        np.testing.assert_array_equal(found, expected[:count])


PAIRS = [(isa, kind) for isa in OTHERS for kind in SOME]


@vectors
@pytest.mark.parametrize("pair", parameters(PAIRS, PAIRS[:1]), ids="-".join)
def test_every_instruction_set_gives_the_same_bits(pair):
    isa, kind = pair
    multiply = block_rows.few(kind, isa)

    @exact
    def few(w, n, d, q, scales, sums, offsets, tokens, out, spare):
        multiply(w, n, d, q, scales, sums, offsets, tokens, 1, out, 0, d, spare)

    n = 1280
    w, x = matrix(kind, 5, n), normal(3, n)
    inputs = [each.rows.reshape(-1) for each in quantized(x, KINDS[kind].group).values()]
    found, spare = np.full((3, 5), np.nan, np.float32), np.zeros(2 * block_rows.ROWS, np.float32)
    few(w.data.reshape(-1), n, 5, *inputs, 3, found.reshape(-1), spare)
    np.testing.assert_array_equal(found, product(x, w)[0])


@vectors
@pytest.mark.exhaustive  # test_kernels_int8.py always tests one other set with tiles
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_tiles_of_every_instruction_set_give_the_same_bits(pair):
    (isa, kind), n = pair, 512
    w, x = matrix(kind, 29, n), normal(27, n)
    group = KINDS[kind].group
    inputs = [each.rows.reshape(-1) for each in quantized(x, group, tiles=True).values()]
    inputs[0] = inputs[0].view(np.int32)
    spare = np.zeros(block_tiles.SUMS + block_panels.panel_words(n, group), np.float32)
    multiply = block_tiles.many(kind, isa)

    @exact
    def many(w, n, d, x, scales, sums, offsets, tokens, out, first, last, spare):
        inputs = x, scales, sums, offsets
        multiply(w, n, d, inputs, 0, tokens, 1, out, first, last, spare)

    found = np.full((27, 29), np.nan, np.float32)
    many(w.data.reshape(-1), n, 29, *inputs, 27, found.reshape(-1), 0, 3, spare)
    np.testing.assert_array_equal(found, product(x, w)[0])


@pytest.mark.parametrize("kind", parameters(KINDS, OFTEN_ROWS))
def test_embed(kind):
    """The values are those of Blocks.rows, to the last bit."""
    w, tokens = matrix(kind, 9, 512), np.array([8, 0, 3, 3])
    found = out(4, 512)
    fields = {"n": 512, "of": 0, "table": w.data}
    call(rows.embed_blocks(kind), 4, tokens=tokens, out=found, **fields)
    np.testing.assert_array_equal(found.rows, w.rows(tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_the_tables_are_those_of_the_formats(kind):
    """What the kernels know of a format, in NumPy, gives the values of model/gguf_blocks.py."""
    form, w = KINDS[kind], matrix(kind, 6, 512)
    data = w.data.reshape(-1, form.nbytes)

    def integers(parts, signed, table=()):
        number, position = 0, 0
        for part in parts:
            bits = data[:, list(part.bytes)].astype(int) >> part.shifts & (1 << part.count) - 1
            if part.powers:
                bits = (data[:, list(part.bytes)] * np.array(part.powers, np.uint8)).astype(
                    int
                ) * 3 >> 8
            number, position = number | bits << position, position + part.count
        if table:
            return np.array(table)[number]
        return number.astype(np.int8).astype(int) if signed else number

    scales = gguf_blocks.half(data, form.scale)
    if form.scales:
        numbers = integers(form.scales, form.scales_signed) - form.scale_bias
        scales = scales * numbers.astype(np.float32)
    numbers = integers(form.parts, form.signed, form.table) - form.bias
    values = numbers * np.repeat(scales, form.values // scales.shape[1], axis=1)
    if form.offset is not None:
        offsets = gguf_blocks.half(data, form.offset) * np.float32(form.sign)
        if form.offsets:
            offsets = offsets * integers(form.offsets, False).astype(np.float32)
        values = values + np.repeat(offsets, form.group, axis=1)
    np.testing.assert_allclose(values.reshape(6, 512), w.dequantize(), rtol=1e-6, atol=1e-6)


@pytest.mark.compiled
@pytest.mark.parametrize(
    "name", parameters(("llama.Q8_0", "qwen2.Q5_1", "llama_k.Q6_K"), ("llama.Q8_0", "llama_k.Q6_K"))
)
def test_logits_of_networks(reference, name):
    """The error is that of an int8 input, as large as llama.cpp's; with two terms it is small."""
    network, kind = name.split(".")
    expected = np.load(reference / "gguf" / f"{network}.expected.npz")
    exact_logits, llama_cpp = expected[f"logits_{kind}"], expected[f"llamacpp_{kind}"]

    def logits(activations):
        config, weights = gguf.load(reference / "gguf" / f"{name}.gguf")
        model = Transformer(config, weights, activations=activations)
        return model.forward(expected["tokens"], State(config), True)

    ours = np.square(logits("int8") - exact_logits).mean()
    assert ours < np.square(llama_cpp - exact_logits).mean()
    np.testing.assert_allclose(logits("int8x2"), exact_logits, rtol=0, atol=2e-3)
