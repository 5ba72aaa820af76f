"""sentencepiece models of all layouts against sentencepiece; which of them llama2.c can read."""

import copy
import io
import json
import pickle
import struct
from functools import cache

import numpy as np
import pytest
import sentencepiece
from conftest import TINY, examples
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2np import Llama, State, Tokenizer, TokenizerError, Transformer, beam_search, evaluate
from llama2np.analysis.evaluation import _Reader
from llama2np.analysis.lens import labels
from llama2np.cli.export import main as export
from llama2np.decoding.generation import Generation
from llama2np.decoding.sampler import Sampler
from llama2np.formats import checkpoint as checkpoints
from llama2np.formats.checkpoint import Header

LETTERS = "".join(map(chr, range(0x4E00, 0x4E00 + 300)))
CORPUS = [
    "the cat sat on the mat, and the other cat ate it",
    "naïve tea: 100 cups in the café, 日本 and ﬁ ½",
    "  spaces   here ",
]
LLAMA = dict(
    model_type="bpe",
    vocab_size=340,
    byte_fallback=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    allow_whitespace_only_pieces=True,
    character_coverage=1.0,
    hard_vocab_limit=False,
    minloglevel=2,
)
# What is not as in Llama's tokenizer, and what the refusal of a tokenizer.bin says; "": it is made.
LAYOUTS = {
    "llama": ({}, ""),
    "pad first": (dict(pad_id=0, unk_id=1, bos_id=2, eos_id=3), "its <s> is 2 and its </s> 3"),
    "gemma": (dict(pad_id=0, eos_id=1, bos_id=2, unk_id=3), "its <s> is 2 and its </s> 1"),
    "no BOS": (dict(bos_id=-1, eos_id=1), "its <s> is missing and its </s> 1"),
    "neither": (dict(bos_id=-1, eos_id=-1), "missing"),
    "no bytes": (dict(byte_fallback=False, vocab_size=100), "no byte_fallback"),
    "many, no bytes": (
        dict(byte_fallback=False, vocab_size=500, required_chars="A" + LETTERS),
        "no byte_fallback",
    ),
    "no dummy": (dict(add_dummy_prefix=False), "add_dummy_prefix"),
    "symbols": (dict(user_defined_symbols=["<sep>", " 日本", "a"]), "piece 3 is user-defined"),
    "control": (dict(control_symbols=["<mask>"]), "piece 3 is control"),
    "NFKC": (dict(normalization_rule_name="nmt_nfkc"), "normalizes"),
    "lower case": (
        dict(normalization_rule_name="nmt_nfkc_cf", remove_extra_whitespaces=True),
        "normalizes",
    ),
    "extra spaces": (dict(remove_extra_whitespaces=True), ""),
    "neither spaces": (
        dict(remove_extra_whitespaces=True, add_dummy_prefix=False),
        "add_dummy_prefix",
    ),
    "suffix": (dict(treat_whitespace_as_suffix=True), "treat_whitespace_as_suffix"),
    "surface": (dict(unk_surface="?", byte_fallback=False), "no byte_fallback"),
}
texts = st.text() | st.text("  aehnt日本ﬁ½Ａ▁🦙\n<sep>", max_size=30)
layouts = st.sampled_from(list(LAYOUTS))


@cache
def trained(name):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, **LLAMA | LAYOUTS[name][0]
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """pair(name) -> our tokenizer, and sentencepiece, of that layout."""

    @cache
    def pair(name):
        path = tmp_path_factory.mktemp("layout") / "tokenizer.model"
        path.write_bytes(trained(name))
        theirs = sentencepiece.SentencePieceProcessor(model_proto=trained(name))
        return Tokenizer.load(path), theirs

    return pair


@settings(max_examples=examples(400))
@given(name=layouts, text=texts)
def test_tokens_and_their_text_are_sentencepiece_s(pair, name, text):
    ours, theirs = pair(name)
    expected = theirs.encode(text)
    assert ours.encode(text, bos=False) == expected
    begin = [] if ours.bos_id is None else [theirs.bos_id()]
    end = [] if ours.eos_id is None else [theirs.eos_id()]
    assert ours.encode(text) == begin + expected
    assert ours.encode(text, eos=True) == begin + expected + end
    assert ours.decode(ours.encode(text)) == theirs.decode(expected)


@settings(max_examples=examples(400))
@given(name=layouts, data=st.data())
def test_any_tokens_are_decoded_as_sentencepiece_does(pair, name, data):
    """Those of broken UTF-8 aside: there it has another number of U+FFFD."""
    ours, theirs = pair(name)
    usual = [i for i in range(ours.vocab_size) if not theirs.is_byte(i) and i not in ours.ends]
    tokens = data.draw(st.lists(st.sampled_from(usual), max_size=12))
    begin = [] if ours.bos_id is None else [ours.bos_id]
    assert ours.decode(begin + tokens) == theirs.decode(tokens)


@pytest.mark.parametrize("name", LAYOUTS)
def test_ids_are_the_model_s_own(pair, name):
    ours, theirs = pair(name)
    assert [ours.bos_id, ours.eos_id] == [
        i if i >= 0 else None for i in (theirs.bos_id(), theirs.eos_id())
    ]
    assert ours.vocab_size == theirs.vocab_size()
    assert ours.ends == {i for i in (theirs.bos_id(), theirs.eos_id()) if i >= 0}
    for twin in copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)):
        assert twin.encode("the cat 日") == ours.encode("the cat 日")


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_tokenizer_bin_is_made_or_refused_by_name(tmp_path, capsys, name):
    source, target = tmp_path / "x.model", tmp_path / "x.bin"
    source.write_bytes(trained(name))
    target.write_bytes(b"as it was")
    status = export([str(target), "--tokenizer", str(source)], "export.py")
    out, err = capsys.readouterr()
    if LAYOUTS[name][1]:
        assert status == 1 and out == "" and err.count("\n") == 1
        assert str(source) in err and LAYOUTS[name][1] in err and "-z" in err
        assert target.read_bytes() == b"as it was"
        return
    assert status == 0 and ("extra spaces" in out) == (name == "extra spaces")
    ours = Tokenizer.load(target)
    for text in ("", "the cat", "語 ∞", "a\nb", "<sep>"):
        assert ours.encode(text) == Tokenizer.load(source).encode(text)


def as_tokenizer_py(model):
    """The tokenizer.bin that llama2.c's tokenizer.py makes of any model."""
    spelled = {model.bos_id(): "\n<s>\n", model.eos_id(): "\n</s>\n"}
    data = struct.pack("<I", 99)
    for i in range(model.vocab_size()):
        piece = spelled.get(i, model.id_to_piece(i)).replace("▁", " ").encode()
        data += struct.pack("<fi", model.get_score(i), len(piece)) + piece
    return data


@pytest.mark.parametrize(
    "name, message",
    (
        ("llama", None),
        ("pad first", r"'\\n<s>\\n' is piece 2, expected 1"),
        ("gemma", "is piece 2, expected 1"),
        ("no BOS", "is piece 1, expected 2"),
        ("neither", r"piece 3 is '<0x02>', expected <0x00>"),
        ("many, no bytes", r"piece 3 is 'he', expected <0x00>"),
        ("symbols", "piece 3 is '<sep>', expected <0x00>"),
        ("control", "piece 3 is '<mask>', expected <0x00>"),
    ),
)
def test_a_tokenizer_bin_of_another_layout_is_refused(tmp_path, pair, name, message):
    (tmp_path / "t.bin").write_bytes(as_tokenizer_py(pair(name)[1]))
    if message is None:
        assert Tokenizer.load(tmp_path / "t.bin").encode("é") == pair(name)[0].encode("é")
        return
    with pytest.raises(TokenizerError, match=f"t.bin: not in llama2.c's layout: .*{message}"):
        Tokenizer.load(tmp_path / "t.bin")


def test_byte_pieces_that_are_cut_off_or_swapped(tmp_path):
    specials, byte = [b"<unk>", b"\n<s>\n", b"\n</s>\n"], [b"<0x%02X>" % i for i in range(256)]

    def load(pieces):
        data = b"".join(struct.pack("<fi", 0, len(piece)) + piece for piece in pieces)
        (tmp_path / "t.bin").write_bytes(struct.pack("<I", 9) + data)
        return Tokenizer.load(tmp_path / "t.bin")

    assert load([*specials, b" ", b"a"]).encode("é") == [1, 3, 0]  # none at all: it is unknown
    assert load([*specials, *(piece.lower() for piece in byte)]).encode("J") == [1, 35, 77]
    for pieces, problem in (
        (byte[:99], "piece 102 is missing, expected <0x63>"),
        ([byte[1], byte[0], *byte[2:]], "piece 3 is '<0x01>', expected <0x00>"),
        ([*byte[:-1], b"<0xfg>"], "piece 258 is '<0xfg>', expected <0xFF>"),
    ):
        with pytest.raises(TokenizerError, match=problem):
            load([*specials, *pieces])


@pytest.mark.parametrize("algorithm", ("unigram", "char", "word"))
def test_other_algorithms_are_refused_by_name(tmp_path, capsys, algorithm):
    model = io.BytesIO()
    options = LLAMA | dict(model_type=algorithm, byte_fallback=algorithm == "unigram")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, **options
    )
    (tmp_path / "x.model").write_bytes(model.getvalue())
    argv = [str(tmp_path / "x.bin"), "--tokenizer", str(tmp_path / "x.model")]
    assert export(argv, "export.py") == 1
    assert f"algorithm is {algorithm.title()}, expected BPE" in capsys.readouterr().err


def test_a_model_that_changes_texts_after_decoding_is_refused(tmp_path):
    spec = b"\x12\1x"  # NormalizerSpec: a charsmap
    (tmp_path / "x.model").write_bytes(trained("llama") + b"\x2a" + bytes([len(spec)]) + spec)
    with pytest.raises(TokenizerError, match=r"x\.model: .*denormalizer|x\.model: not a sentence"):
        Tokenizer.load(tmp_path / "x.model")


@given(name=layouts, text=st.text("  ab cat the ▁é", max_size=60), size=st.integers(1, 9))
def test_a_long_text_is_cut_only_where_its_tokens_stay(pair, name, text, size):
    ours = pair(name)[0]
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    assert list(_Reader(ours, pieces, int)) == ours.encode(text, bos=False)


# --- what generation does with these ids ---


@pytest.fixture
def told(write, pair, monkeypatch):
    """told(name, wanted) -> a Llama of that layout whose network wants these tokens in turn."""

    def told(name, wanted):
        ours = pair(name)[0]
        config = checkpoints.Config(**vars_of(TINY) | {"vocab_size": ours.vocab_size})
        path = write("m.bin", Header(1, config, True))
        model = Llama(Transformer(*checkpoints.load(path)), ours)
        script = iter(wanted)

        def forward(tokens, state, all_logits=False):
            state.pos += len(tokens)
            logits = np.zeros(ours.vocab_size, np.float32)
            logits[next(script)] = 1
            return logits

        monkeypatch.setattr(model.transformer, "forward", forward)
        return model

    return told


def vars_of(config):
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


@pytest.mark.parametrize("name", ("llama", "pad first", "gemma", "no BOS", "neither"))
def test_a_text_ends_at_the_model_s_own_eos(told, pair, name):
    ours = pair(name)[0]
    first = ours.encode("the", bos=False)[0]
    others = [i for i in (1, 2, 3) if i not in ours.ends]  # llama2.c's, among them
    eos = [] if ours.eos_id is None else [ours.eos_id]
    story = told(name, [first, *others, *eos, first]).generate(
        "a", temperature=0, max_new_tokens=len(others) + 1 + len(eos)
    )
    story.read()
    assert story.tokens == [first, *others, *eos]
    assert story.stop_reason == ("end" if eos else "max_new_tokens")


@pytest.mark.parametrize("name", ("pad first", "gemma", "no BOS", "neither"))
def test_turns_of_a_chat_have_the_model_s_own_ids(told, pair, monkeypatch, name):
    ours = pair(name)[0]
    first = ours.encode("the", bos=False)[0]
    end = [] if ours.eos_id is None else [ours.eos_id]
    model = told(name, [first, *end, first, *end] if end else [first] * 99)
    read, forward = [], model.transformer.forward

    def watch(tokens, state, all_logits=False):
        read.extend(tokens)
        return forward(tokens, state, all_logits)

    monkeypatch.setattr(model.transformer, "forward", watch)
    chat = model.chat(temperature=0)
    answer = chat.send("X")
    next(answer), next(answer, None)
    answer.close()
    next(chat.send("Y"))
    turns = [ours.encode(f"[INST] {text} [/INST]") for text in "XY"]
    begun = [] if ours.bos_id is None else [ours.bos_id]
    assert read[: len(turns[0])] == turns[0] and turns[0][: len(begun)] == begun
    assert read[-len(turns[1]) :] == turns[1]
    between = read[len(turns[0]) : -len(turns[1])]
    assert between == ([first, *end] if end else [first, first])


def test_beams_end_at_the_model_s_own_ids(write, pair):
    ours = pair("gemma")[0]  # </s> is 1, <s> 2
    config = checkpoints.Config(**vars_of(TINY) | {"vocab_size": ours.vocab_size})
    path = write("m.bin", Header(1, config, True))
    model = Llama(Transformer(*checkpoints.load(path)), ours)
    for beam in beam_search(model, [2, 9], beams=30, max_new_tokens=1):
        assert beam.ended == (beam.tokens[-1] in (1, 2))
    bare = beam_search(model.transformer, [2, 9], beams=340, max_new_tokens=1)
    assert {b.tokens[-1] for b in bare if b.ended} == {1, 2}
    padded = Llama(model.transformer, pair("pad first")[0])  # <s> is 2, </s> 3
    ended = beam_search(padded, [2, 9], beams=340, max_new_tokens=1)
    assert {b.tokens[-1] for b in ended if b.ended} == {2, 3}


def test_labels_are_of_the_model_s_own_ids(pair):
    assert labels(pair("gemma")[0], [0, 1, 2, 3]) == ["<pad>", "</s>", "<s>", "<unk>"]
    assert labels(pair("neither")[0], [0, 1]) == ["<unk>", "<0x00>"]


@pytest.fixture
def without_bos(write, pair):
    ours = pair("neither")[0]
    config = checkpoints.Config(**vars_of(TINY) | {"vocab_size": ours.vocab_size})
    return Llama(Transformer(*checkpoints.load(write("m.bin", Header(1, config, True)))), ours)


def test_an_empty_prompt_without_bos(without_bos, tmp_path, capsys):
    from llama2np.cli.lens import main as lens
    from llama2np.cli.run import main as run

    with pytest.raises(ValueError, match="the prompt is empty, and this tokenizer has no BOS"):
        without_bos.generate("")
    (tmp_path / "tokenizer.model").write_bytes(trained("neither"))
    for command, argv in ((run, []), (lens, ["-i", ""])):
        assert command([str(tmp_path / "m.bin"), *argv], "prog") == 1
        assert "prog: the prompt is empty" in capsys.readouterr().err
    assert run([str(tmp_path / "m.bin"), "-i", "the cat", "-n", "9"], "prog") == 0
    assert capsys.readouterr().out.startswith("the cat")


@pytest.mark.parametrize("context, stride", ((96, 48), (8, 8), (8, 3), (1, 1)))
def test_perplexity_without_bos(without_bos, context, stride):
    """A token without any token before it does not count."""
    text = "the cat sat on the mat, and the other cat"
    tokens = without_bos.tokenizer.encode(text)
    costs = {}
    for begin in range(0, len(tokens), stride):
        window = tokens[begin : begin + context]
        logits = without_bos.forward(window, State(without_bos.config), all_logits=True)
        logits = logits.astype(float)
        for i in range(1, len(window)):
            row = logits[i - 1]
            cost = np.log(np.exp(row).sum()) - row[window[i]]
            costs.setdefault(begin + i, cost)
        if begin + context >= len(tokens):
            break
    if not costs:
        with pytest.raises(ValueError, match="no text to measure"):
            evaluate(without_bos, text, context=context, stride=stride)
        return
    found = evaluate(without_bos, text, context=context, stride=stride)
    assert found.tokens == len(costs)
    assert found.nats == pytest.approx(sum(costs.values()), rel=1e-5)


def test_the_layouts_of_others(reference):
    """Gemma's: <pad> 0, </s> 1, <s> 2, no space before a text."""
    folder = reference / "tokenizers/gemma"
    ours = Tokenizer.load(folder / "tokenizer.model")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    cases = json.loads((folder / "cases.json").read_text())
    cases = cases["cases"] if isinstance(cases, dict) else cases
    texts = [case["text"] for case in cases if isinstance(case.get("text"), str)]
    assert len(texts) > 20
    for text in texts:
        assert ours.encode(text) == [2, *theirs.encode(text)]


def test_a_generation_made_by_hand_needs_no_llama(pair, write):
    ours = pair("pad first")[0]
    config = checkpoints.Config(**vars_of(TINY) | {"vocab_size": ours.vocab_size})
    network = Transformer(*checkpoints.load(write("m.bin", Header(1, config, True))))
    prompt = ours.encode("the")
    story = Generation(network, ours, prompt, Sampler(0), state=State(config), max_new_tokens=3)
    assert isinstance(story.read(), str)
