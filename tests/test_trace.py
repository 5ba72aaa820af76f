"""What Trace records and Edit changes, against naive.py."""

import threading

import naive
import numpy as np
import pytest
from conftest import TINY, random_tensors

from llama2np import Edit, Llama, Tokenizer, Trace, Transformer
from llama2np.formats.checkpoint import Header, save
from llama2np.formats.checkpoint import load as load_checkpoint
from llama2np.model.hooks import ENDS, POINTS
from llama2np.model.weights import Int8

TOKENS = np.random.default_rng(3).integers(0, TINY.vocab_size, 90)
PIECES = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"%d" % i for i in range(3, TINY.vocab_size))]


@pytest.fixture(scope="module", params=(1, 2), ids=("float32", "int8"))
def model(request, tmp_path_factory):
    """No test here changes it."""
    header = Header(request.param, TINY, True, group_size=16 if request.param == 2 else 0)
    path = tmp_path_factory.mktemp("trace") / "tiny.bin"
    save(path, header, random_tensors(header))
    return Llama(Transformer(*load_checkpoint(path)), Tokenizer(PIECES, [0] * len(PIECES)))


def read(model, sizes, tokens=TOKENS):
    """All logits of the tokens, read in blocks of these sizes, and the State."""
    state, found = model.new_state(), []
    for size in sizes:
        found.append(model.forward(tokens[state.pos : state.pos + size], state, all_logits=True))
    return np.concatenate(found), state


def traced(model, sizes=(70, 1, 1, 8), names=(), *edits, **options):
    trace = Trace(*names, **options)
    logits, state = read(model.with_hooks(*edits, trace), sizes)
    return trace, logits, state


@pytest.mark.parametrize("sizes", ((90,), (1,) * 6, (7, 60, 1, 1, 5)))
def test_looking_changes_nothing_to_the_bit(model, sizes):
    nothing = [Edit(name, lambda array, place: array.copy()) for name in POINTS]
    expected, plain = read(model, sizes)
    trace, found, state = traced(model, sizes, (), *nothing)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(trace["logits"], expected)
    assert state.pos == plain.pos
    for a, b in zip((state.keys, state.values), (plain.keys, plain.values), strict=True):
        np.testing.assert_array_equal(a, b)


def test_looking_at_a_prompt_longer_than_a_block(write):
    from dataclasses import replace

    config = replace(TINY, seq_len=300)
    header = Header(1, config, True)
    model = Llama(Transformer(*load_checkpoint(write("long.bin", header))), None)
    tokens = np.resize(TOKENS, 290)
    trace = Trace("resid_post", "attention", "logits", layers=-1)
    found = model.with_hooks(trace).forward(tokens, model.new_state())
    np.testing.assert_array_equal(found, model.forward(tokens, model.new_state()))
    assert trace["resid_post", 2].shape == (290, 48)
    assert trace["attention", 2].shape == (6, 290, 290)
    np.testing.assert_array_equal(trace.positions("attention"), np.arange(290))
    assert trace["logits"].shape == (1, 300) and trace.positions("logits") == [289]


def apply(weight, x):
    """A matrix, as naive.py has it: exact for int8."""
    if not isinstance(weight, Int8):
        return naive.matmul(weight.w, x)
    q, scales = naive.quantize(x, weight.q.shape[1] // weight.scales.shape[1])
    return naive.matmul_int8(weight.q, weight.scales, q, scales)


def row(weight, tokens):
    if not isinstance(weight, Int8):
        return weight.w[tokens]
    return weight.q[tokens] * np.repeat(weight.scales, 16, 1)[tokens]


def test_each_array_follows_from_those_before_it(model):
    """Every step of every block, naively, from the arrays that were recorded: prompt and T = 1."""
    trace, logits, _ = traced(model)
    c, weights = model.config, model.transformer.weights
    count, width = 80, c.head_dim
    angles = naive.rope_angles(10000.0 ** -(np.arange(0, width, 2) / width), 0, count)

    def same(found, expected):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)

    before = trace["embedding"]
    np.testing.assert_array_equal(before, row(weights.embedding, TOKENS[:count]))
    for i, layer in enumerate(weights.layers):
        at = {name: trace[name, i] for name in POINTS if name not in ENDS}
        flat = {name: array.reshape(count, -1) for name, array in at.items() if array.ndim == 3}
        same(at["attn_norm"], naive.rmsnorm(before, layer.attn_norm, c.norm_eps))
        same(flat["q"], naive.rotate(apply(layer.wq, at["attn_norm"]), angles, width))
        same(flat["k"], naive.rotate(apply(layer.wk, at["attn_norm"]), angles, width))
        same(flat["v"], apply(layer.wv, at["attn_norm"]))
        same(flat["mixed"], naive.attention(flat["q"], flat["k"], flat["v"], width, 0))
        assert at["attention"].shape == (c.n_heads, count, count)
        same(at["attention"].sum(-1), 1)
        for head in range(c.n_heads):
            same(at["mixed"][:, head], at["attention"][head] @ at["v"][:, head // 3])
        same(at["attn_out"], apply(layer.wo, flat["mixed"]))
        np.testing.assert_array_equal(at["resid_mid"], before + at["attn_out"])
        same(at["ffn_norm"], naive.rmsnorm(at["resid_mid"], layer.ffn_norm, c.norm_eps))
        same(at["gate"], apply(layer.w_gate, at["ffn_norm"]))
        same(at["up"], apply(layer.w_up, at["ffn_norm"]))
        same(at["mlp"], naive.swiglu(at["gate"], at["up"]))
        same(at["mlp_out"], apply(layer.w_down, at["mlp"]))
        np.testing.assert_array_equal(at["resid_post"], at["resid_mid"] + at["mlp_out"])
        before = at["resid_post"]
    final = naive.rmsnorm(before, weights.final_norm, c.norm_eps)
    same(logits, apply(weights.classifier, final.astype(np.float32)))


def test_what_was_recorded_stays_as_it_was(model):
    """The arrays are copies: neither a later step nor the reader of a trace changes others."""
    trace = Trace()
    watched, state = model.with_hooks(trace), model.new_state()
    watched.forward(TOKENS[:5], state)
    kept = {name: trace[name].copy() for name in POINTS}
    watched.forward(TOKENS[5:6], state)
    for name in POINTS:
        found = trace[name]
        if name == "attention":
            found = found[:, :, :5, :5]
        elif name == "logits":
            found = found[:1]
        else:
            found = found[..., :5, :] if found.ndim < 4 else found[:, :5]
        np.testing.assert_array_equal(found, kept[name])


def test_chosen_names_layers_and_positions(model):
    every, _, _ = traced(model)
    trace, _, _ = traced(
        model, (70, 1, 1, 8), ("q", "attention"), layers=[0, -1], positions=[3, 71]
    )
    np.testing.assert_array_equal(trace["q"], every["q"][[0, 2]][:, [3, 71]])
    np.testing.assert_array_equal(trace["q", 2], every["q", 2][[3, 71]])
    np.testing.assert_array_equal(trace["attention", 0], every["attention", 0][:, [3, 71], :72])
    np.testing.assert_array_equal(trace.positions("q"), [3, 71])
    for key in ("k", ("q", 1), "logits"):
        with pytest.raises(
            KeyError, match=r"was recorded, but Trace\(q, attention; layers \[0, 2\]\)"
        ):
            trace[key]
    assert "q" in trace and "k" not in trace and list(trace) == ["q", "attention"]
    trace.clear()
    with pytest.raises(KeyError, match=r"no q was recorded, but Trace\(of nothing yet"):
        trace["q"]


@pytest.fixture(scope="module")
def without_edit(model):
    return traced(model)


@pytest.mark.parametrize("name", POINTS)
def test_an_edit_acts_on_what_follows_and_on_nothing_before(model, without_edit, name):
    def double(array, place):
        array *= 2

    plain, expected, _ = without_edit
    if name == "attention":  # whose shares would stay shares

        def double(array, place):
            return array[::-1]

    trace, logits, _ = traced(model, (70, 1, 1, 8), (), Edit(name, double, layers=1))
    assert not np.allclose(logits, expected, atol=1e-3)
    if name in ENDS:
        np.testing.assert_allclose(trace[name], 2 * plain[name])
        return
    for other in POINTS[1:-1]:
        np.testing.assert_array_equal(trace[other, 0], plain[other, 0])
    step = POINTS.index(name)
    independent = {"gate": {"up"}, "up": {"gate"}, "q": {"k", "v"}, "k": {"q", "v"}, "v": {"q"}}
    for other in {*POINTS[1:step], *independent.get(name, ())}:
        np.testing.assert_array_equal(trace[other, 1], plain[other, 1])
    for later in (POINTS[-2], "resid_mid" if step < POINTS.index("resid_mid") else name):
        assert not np.allclose(trace[later, 1], plain[later, 1], atol=1e-4)


def test_a_head_without_voice_is_one_whose_columns_of_wo_are_zero(model):
    def ablate(mixed, place):
        mixed[:, 4] = 0

    trace, _, _ = traced(model, (20,), ("mixed", "attn_out"), Edit("mixed", ablate, layers=2))
    plain, _, _ = traced(model, (20,), ("mixed", "attn_out"))
    mixed = plain["mixed", 2].copy()
    mixed[:, 4] = 0
    expected = apply(model.transformer.weights.layers[2].wo, mixed.reshape(20, -1))
    np.testing.assert_allclose(trace["attn_out", 2], expected, atol=1e-5)
    np.testing.assert_array_equal(trace["attn_out", 1], plain["attn_out", 1])


def test_a_patched_stream_is_the_other_run(model):
    """If the residual stream is replaced by another sentence's, the network continues with it."""
    other = TOKENS[::-1]
    source = Trace("resid_post", layers=0)
    expected, _ = read(model.with_hooks(source), (30,), other)

    def patch(x, place):
        x[:] = source["resid_post", 0][place.positions]

    found, _ = read(model.with_hooks(Edit("resid_post", patch, layers=0)), (30,))
    np.testing.assert_array_equal(found, expected)


def test_attention_that_is_changed_is_gathered_anew(model):
    def back(weights, place):
        """All eyes on the first position."""
        weights[:] = 0
        weights[..., 0] = 1

    trace, _, _ = traced(model, (9, 1), ("mixed", "v"), Edit("attention", back, layers=1))
    heads = trace["v", 1][0].repeat(3, axis=0)  # each serves three query heads
    np.testing.assert_array_equal(trace["mixed", 1], np.broadcast_to(heads, (10, 6, 8)))


def test_hooks_come_in_their_order(model):
    before, after = Trace("resid_mid"), Trace("resid_mid")
    zero = Edit("resid_mid", lambda x, place: 0 * x)
    first = model.with_hooks(before)
    first.with_hooks(zero, after).forward(TOKENS[:4], model.new_state())
    assert not after["resid_mid"].any() and before["resid_mid", 0].any()


def test_edits_are_told_where_they_are(model):
    seen = []
    edit = Edit("k", lambda array, place: seen.append((place.name, place.layer, *place.positions)))
    read(model.with_hooks(edit), (2, 1))
    assert seen == [("k", i, 0, 1) for i in range(3)] + [("k", i, 2) for i in range(3)]


def test_a_cache_that_was_edited_stays_so(model):
    """A plain model that continues from the same State uses the values that an edit has changed."""
    watched, state = model.with_hooks(Edit("v", lambda v, place: 0 * v)), model.new_state()
    watched.forward(TOKENS[:5], state)
    assert not any(values[:, :5].any() for values in state.values)
    plain, _ = read(model, (6,))
    assert not np.allclose(model.forward(TOKENS[5:6], state), plain[5], atol=1e-3)


def test_generate_goes_through_the_hooks(model):
    trace = Trace("logits")
    watched = model.with_hooks(trace, Edit("logits", lambda logits, place: -logits))
    text = "".join(watched.generate("", max_new_tokens=7, temperature=0, stop="never"))
    assert text != "".join(model.generate("", max_new_tokens=7, temperature=0))
    assert 1 <= len(trace["logits"]) <= 7


def test_a_model_that_is_watched_elsewhere_is_not_disturbed(model):
    """Threads over one model: some watch, one edits, some do neither."""
    plain, _ = read(model, (60, 1, 1))
    edit = Edit("mlp_out", lambda array, place: 0 * array)
    edited, _ = read(model.with_hooks(edit), (60, 1, 1))
    traces = [Trace("logits") for _ in range(2)]
    models = [model, *(model.with_hooks(t) for t in traces), model.with_hooks(edit), model]
    found = [None] * len(models)

    def work(i):
        found[i] = read(models[i], (60, 1, 1))[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found, [plain, plain, plain, edited, plain])
    for trace in traces:
        np.testing.assert_array_equal(trace["logits"], plain)
    assert type(model.transformer) is Transformer


def test_what_cannot_be_watched(model):
    with pytest.raises(ValueError, match="no array is called 'keys'; there are embedding, attn_n"):
        Trace("keys")
    with pytest.raises(ValueError, match=r"no array is called \['q', 'k'\]"):
        Trace(["q", "k"])
    with pytest.raises(ValueError, match="no array is called 'K'"):
        Edit("K", lambda k, place: None)
    for layer in (3, -4):
        with pytest.raises(ValueError, match=f"layer {layer} is not one of the 3: 0 to 2"):
            model.with_hooks(Trace("k", layers=layer))
    with pytest.raises(ValueError, match="positions count from 0"):
        Trace(positions=[-1])


def test_hooks_leave_the_class_of_the_network(model):
    class Louder(Transformer):
        def forward(self, tokens, state, all_logits=False):
            return 2 * super().forward(tokens, state, all_logits)

    trace = Trace("logits")
    louder = Llama(Louder(model.config, model.transformer.weights), None)
    found = louder.with_hooks(trace).forward(TOKENS[:3], louder.new_state())
    np.testing.assert_array_equal(found, 2 * trace["logits"][0])
    np.testing.assert_array_equal(found, louder.forward(TOKENS[:3], louder.new_state()))
