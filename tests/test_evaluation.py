"""Perplexity and the distance of two models, against a few lines of NumPy."""

import gc
import math
import tracemalloc

import naive
import numpy as np
import pytest
from conftest import ROOT, TINY, random_tensors

from llama2np import Edit, Llama, Tokenizer, Transformer, compare, evaluate
from llama2np.analysis.evaluation import _Reader, _windows
from llama2np.formats import checkpoint
from llama2np.formats.checkpoint import Header
from llama2np.formats.llama2c import read_bin
from llama2np.formats.write import write_bin

TALE = (ROOT / "docs" / "tale.txt").read_text(encoding="utf-8")
LETTERS = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % i for i in range(256)), b" "]
LETTERS += [bytes([ord("A") + i]) for i in range(TINY.vocab_size - len(LETTERS))]


@pytest.fixture(scope="module")
def stories(reference):
    folder = reference / "stories260K"
    return Llama.load(folder / "stories260K.bin", folder / "tok512.bin")


@pytest.fixture
def tiny(write):
    """tiny(seed) -> a random network that reads letters."""
    tokenizer = Tokenizer(LETTERS, [0] * len(LETTERS))

    def tiny(seed=0):
        path = write(f"{seed}.bin", Header(1, TINY, True), seed)
        return Llama(Transformer(*checkpoint.load(path)), tokenizer)

    return tiny


def naive_log_probabilities(config, tensors, tokens):
    return np.log(naive.softmax(naive.forward(config, tensors, tokens)))


@pytest.mark.parametrize(
    "context, stride, length",
    (
        pytest.param(512, 512, 1000, marks=pytest.mark.compiled),
        pytest.param(256, 100, 700, marks=pytest.mark.compiled),
        (60, 7, 150),
        (1, 1, 60),
    ),
)
def test_perplexity_is_what_ten_lines_of_numpy_find(reference, stories, context, stride, length):
    text = TALE[:length]
    header, tensors = checkpoint.open_tensors(reference / "stories260K" / "stories260K.bin")
    tokens = stories.tokenizer.encode(text, bos=False)
    costs = np.full(len(tokens), np.nan)
    for begin in range(0, len(tokens), stride):
        window = tokens[begin : begin + context]
        log_p = naive_log_probabilities(header.config, tensors, [1, *window[:-1]])
        found = -log_p[np.arange(len(window)), window]
        here = costs[begin : begin + context]
        here[:] = np.where(np.isnan(here), found, here)
    result = evaluate(stories, text, context=context, stride=stride)
    assert result.tokens == len(tokens) and result.bytes == len(text.encode())
    assert result.nats_per_token == pytest.approx(costs.mean(), abs=1e-4)
    assert result.perplexity == pytest.approx(math.exp(costs.mean()), abs=1e-4, rel=1e-5)
    bits = costs.sum() / math.log(2) / len(text.encode())
    assert result.bits_per_byte == pytest.approx(bits, abs=1e-4)


def test_a_model_that_knows_nothing(tiny):
    """Equal logits: perplexity is the size of the vocabulary."""
    level = tiny().with_hooks(Edit("logits", lambda logits, place: 0 * logits))
    result = evaluate(level, "ABC BCA", context=5)
    assert result.perplexity == pytest.approx(300)
    assert (result.tokens, result.bytes) == (8, 7)
    assert result.bits_per_byte == pytest.approx(8 / 7 * math.log2(300))


def test_two_models_side_by_side(tiny):
    """The divergence, its direction too, and the agreement, token for token."""
    one, other, text = tiny(0), tiny(1), "ABC BCA CAB " * 5
    found = compare(one, other, text, context=20, stride=20)
    p, q = [], []
    tokens = one.tokenizer.encode(text, bos=False)
    for at in range(0, len(tokens), 20):
        window = [1, *tokens[at : at + 20][:-1]]
        for seed, rows in ((0, q), (1, p)):
            tensors = random_tensors(Header(1, TINY, True), seed)
            rows.append(naive_log_probabilities(TINY, tensors, window))
    p, q = np.concatenate(p), np.concatenate(q)
    assert found.divergence == pytest.approx((np.exp(p) * (p - q)).sum(1).mean(), rel=1e-3)
    assert found.agreement == pytest.approx((p.argmax(1) == q.argmax(1)).mean(), abs=1e-9)
    assert found.agreement < 0.5 and found.divergence > 0.5
    assert found.model == evaluate(one, text, context=20, stride=20)
    assert found.against == evaluate(other, text, context=20, stride=20)
    same = compare(one, one, text)
    assert same.agreement == 1 and same.divergence == 0


@pytest.mark.compiled
def test_what_quantization_costs_the_smallest_model(reference, stories, tmp_path):
    folder = reference / "stories260K"
    write_bin(read_bin(folder / "stories260K.bin"), tmp_path / "q8.bin", 2)
    found = compare(Llama.load(tmp_path / "q8.bin", folder / "tok512.bin"), stories, TALE)
    assert 0 < found.divergence < 0.002 and 0.97 < found.agreement < 1
    assert found.model.perplexity == pytest.approx(found.against.perplexity, rel=0.01)


@pytest.mark.parametrize("context, stride", ((7, 7), (7, 3), (7, 1), (1, 1), (50, 50)))
@pytest.mark.parametrize("count", (1, 6, 7, 8, 20, 21))
def test_each_token_counts_once(count, context, stride):
    counted = []
    for tokens, known in _windows(range(count), context, stride):
        assert len(tokens) <= context and tokens == list(range(tokens[0], tokens[-1] + 1))
        assert tokens[0] % stride == 0 and (not counted or known >= context - stride)
        counted += tokens[known:]
    assert counted == list(range(count))


@pytest.mark.parametrize("text", (TALE, TALE.replace(" ", "  "), "a", " ", "  b ", "é 日本 x " * 9))
@pytest.mark.parametrize("size", (1, 2, 7, 1000))
def test_a_text_in_pieces_has_the_same_tokens(stories, text, size, monkeypatch):
    monkeypatch.setattr("llama2np.analysis.evaluation._CHARACTERS", 50)
    told = []
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    for given in (text, pieces):
        reader = _Reader(stories.tokenizer, given, told.append)
        assert list(reader) == stories.tokenizer.encode(text, bos=False)
        assert reader.bytes == sum(told) == len(text.encode())
        told.clear()


def test_a_text_whose_pieces_span_words_is_not_cut():
    tokenizer = Tokenizer([*LETTERS, b"A ", b"A B"], [0] * 302)
    reader = _Reader(tokenizer, ["A", " ", "B", " A B"], int)
    assert list(reader) == tokenizer.encode("A B A B", bos=False)
    assert 301 in list(_Reader(tokenizer, "A B A B", int))


@pytest.mark.compiled
def test_memory_does_not_grow_with_the_text(tiny):
    model = tiny()

    def pieces(times):
        for _ in range(times):
            gc.collect()  # what is left in cycles is not the question
            yield "ABC BCA " * 20

    def peak(times):
        tracemalloc.start()
        evaluate(model, pieces(times), context=16, stride=16)
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    evaluate(model, pieces(1), context=16, stride=16)  # loads the kernels: that is not the question
    gc.freeze()  # what was there before is not looked through each time
    peak(4)
    assert peak(12) < 1.15 * peak(4)


@pytest.mark.parametrize(
    "options, message",
    (
        ({"context": 97}, "context must be 1 to 96, the model's, not 97"),
        ({"context": 0}, "context must be 1 to 96"),
        ({"context": 10, "stride": 11}, "stride must be 1 to 10, the context, not 11"),
        ({"stride": 0}, "stride must be 1 to 96"),
    ),
)
def test_numbers_out_of_range(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(tiny(), "A", **options)


def test_what_cannot_be_measured(tiny):
    model = tiny()
    for nothing in ("", [], ["", ""]):
        with pytest.raises(ValueError, match="there is no text"):
            evaluate(model, nothing)
    other = Llama(model.transformer, Tokenizer([*LETTERS[:-1], b"?"], [0] * len(LETTERS)))
    with pytest.raises(ValueError, match="different vocabularies"):
        compare(model, other, "A")
    broken = model.with_hooks(Edit("logits", lambda logits, place: logits / np.float32(1e-45)))
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="weights are damaged"):
        evaluate(broken, "A")
