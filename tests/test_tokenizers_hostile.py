"""Damaged and hostile tokenizer.json files: one line, in bounded time and memory."""

import copy
import json
import tracemalloc

import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2np import Tokenizer, TokenizerError
from llama2np.text import fields, models, patterns

GOOD = {
    "version": "1.0",
    "truncation": None,
    "added_tokens": [
        {"id": 5, "content": "<|end|>", "special": True, "normalized": False, "lstrip": False}
    ],
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"String": "x"}, "content": "y"},
            {"type": "BertNormalizer", "lowercase": False},
        ],
    },
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "[0-9]+"}, "behavior": "Isolated"},
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False},
        ],
    },
    "model": {
        "type": "BPE",
        "vocab": {"a": 0, "b": 1, "Ġ": 2, "ab": 3, "Ġa": 4},
        "merges": ["a b", ["Ġ", "a"]],
    },
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "E", "type_id": 0}}, {"Sequence": {"id": "A"}}],
        "pair": [{"Sequence": {"id": "A"}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"E": {"id": "E", "ids": [5], "tokens": ["<|end|>"]}},
    },
    "decoder": {"type": "ByteLevel"},
}
DEEP = {"type": "Sequence", "normalizers": []}
for _ in range(9):
    DEEP = {"type": "Sequence", "normalizers": [DEEP]}


def changed(*path, to):
    """GOOD with another value at a path of keys."""
    value = copy.deepcopy(GOOD)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return value


def load(folder, value):
    path = folder / "tokenizer.json"
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return Tokenizer.load(path)


def refused(folder, value):
    with pytest.raises(TokenizerError) as error:
        load(folder, value)
    said = str(error.value)
    assert said.startswith(str(folder / "tokenizer.json")) and "\n" not in said
    return said


def test_the_good_one(tmp_path):
    tokenizer = load(tmp_path, GOOD)
    assert tokenizer.encode("ab a<|end|>1b") == [5, 3, 4, 5, 1]
    assert tokenizer.encode_pair("a", "b") == ([0, 1], [0, 1])
    assert tokenizer.pieces == [b"a", b"b", b" ", b"ab", b" a", b"<|end|>"]


WRONG = {
    "no model": (("model",), None, "it has no model"),
    "model": (("model",), [], "model is [], expected an object"),
    "Unigram": (("model",), {"type": "Unigram"}, "'Unigram' is not supported; BPE and WordPiece"),
    "vocab": (("model", "vocab"), ["a"], "vocab is ['a'], expected an object"),
    "id": (("model", "vocab"), {"a": "0"}, "vocab: 'a' is '0', expected a whole number"),
    "negative id": (("model", "vocab"), {"a": -1}, "vocab: 'a' is -1, expected a whole number"),
    "true": (("model", "vocab"), {"a": True}, "vocab: 'a' is True, expected a whole number"),
    "large id": (("model", "vocab", "a"), 2**22, "'a' is 4194304, expected a whole number"),
    "id above the limit": (("model", "vocab", "a"), 2**20, "has a token 1,048,576, expected at"),
    "same id": (("model", "vocab", "a"), 1, "two pieces have the same number"),
    "merge": (("model", "merges"), ["a"], "merges[0] is 'a', expected two pieces"),
    "merge of three": (("model", "merges"), ["a b c"], "expected two pieces"),
    "merge, types": (("model", "merges"), [["a", 1]], "merges[0] is ['a', 1], expected two"),
    "unknown piece": (("model", "merges"), ["a a"], "'a a', but 'aa' is not in the vocabulary"),
    "unk_token": (("model", "unk_token"), "?", "unk_token is '?', which is not in the vocabulary"),
    "dropout": (("model", "dropout"), 0.1, "dropout is 0.1, expected none"),
    "long piece": (("model", "vocab"), {"a" * 2049: 0}, "a piece has 2,049 characters"),
    "surrogate": (("model", "vocab"), {"\ud800": 0}, "which UTF-8 cannot encode"),
    "normalizer": (("normalizer", "type"), "Precompiled", "the normalizer 'Precompiled' is not s"),
    "normalizers": (("normalizer",), DEEP, "too many parts"),
    "many normalizers": (("normalizer", "normalizers"), [{"type": "NFC"}] * 65, "too many parts"),
    "a number as one": (("normalizer", "normalizers"), [5], "normalizers[0] is 5, expected an ob"),
    "pre_tokenizer": (("pre_tokenizer",), {"type": "UnicodeScripts"}, "'UnicodeScripts' is not s"),
    "behavior": (("pre_tokenizer", "pretokenizers", 0, "behavior"), "No", "behavior is 'No', exp"),
    "regex": (("pre_tokenizer", "pretokenizers", 0, "pattern"), {"Regex": "("}, "'(' is not a reg"),
    "large regex": (
        ("pre_tokenizer", "pretokenizers", 0, "pattern"),
        {"Regex": "((a{1000}){1000}){1000}"},
        "repeats too often",
    ),
    "long regex": (
        ("pre_tokenizer", "pretokenizers", 0, "pattern"),
        {"Regex": "a" * 5000},
        "the pattern has 5,000 characters, expected at most 4,096",
    ),
    "processor": (("post_processor", "type"), "X", "the post_processor 'X' is not supported"),
    "no text": (("post_processor", "single"), [], "single must have the text A once"),
    "part": (("post_processor", "single"), [{"Text": 1}], "expected a Sequence or a SpecialToken"),
    "part, name": (
        ("post_processor", "single", 0),
        {"SpecialToken": {"id": "F"}},
        "'F' is not in special_tokens",
    ),
    "many parts": (("post_processor", "pair"), GOOD["post_processor"]["pair"] * 99, "more than 64"),
    "decoder": (("decoder", "type"), "CTC", "the decoder 'CTC' is not supported"),
    "stripped": (("decoder",), {"type": "Strip", "start": 2}, "strips 2 before and 0 after"),
    "added": (("added_tokens",), {"a": 1}, "added_tokens is {'a': 1}, expected a list"),
    "added id": (("added_tokens", 0, "id"), 1, "'<|end|>' has the number 1, which is that of 'b'"),
    "added flag": (("added_tokens", 0, "lstrip"), "yes", "lstrip is 'yes', expected true or false"),
    "added content": (("added_tokens", 0, "content"), None, "content is missing, expected a text"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_wrong_fields(tmp_path, case):
    path, value, words = case
    assert words in refused(tmp_path, changed(*path, to=value))


@pytest.mark.parametrize(
    "data, words",
    [
        (b"{", "not valid JSON|but a text"),
        (b'{"model": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "JSON|nested"),
        (b'{"model": {}, "model": {}}', "a key occurs twice"),
        (b'{"model": 1' + b"0" * 5000 + b"}", "not valid JSON|expected an object"),
        (b'{"model": "\\ud800"}', "expected an object"),
        (b'{"normalizer": "\xff"}', "not valid JSON"),
    ],
    ids=("cut", "deep", "twice", "large number", "text", "not UTF-8"),
)
def test_no_json(tmp_path, data, words):
    said = refused(tmp_path, data)
    assert any(word in said for word in words.split("|"))


def test_memory_is_bounded(tmp_path, monkeypatch):
    """A list takes forty times the memory of its JSON."""
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b'{"model": [' + b"[]," * 2**21 + b"[]]}")
    tracemalloc.start()
    try:
        with pytest.raises(TokenizerError, match="of the character '\\['"):
            Tokenizer.load(path)
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
    with open(path, "wb") as file:
        file.write(b"{")
        file.truncate(fields.LARGEST + 1)
    with pytest.raises(TokenizerError, match="larger than 67,108,864 bytes"):
        Tokenizer.load(path)
    monkeypatch.setattr(models, "MAX_PIECES", 4)
    assert "has 5 pieces, expected at most 4" in refused(tmp_path, GOOD)


def test_a_pattern_that_explodes_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(patterns, "_SECONDS", 0.05)
    bad = {"Regex": "(a+)+$|(a|b|ab)*c"}
    tokenizer = load(tmp_path, changed("pre_tokenizer", "pretokenizers", 0, "pattern", to=bad))
    with pytest.raises(ValueError, match="tokenizer.json: .*Regex: this pattern takes too long"):
        tokenizer.encode("a" * 40 + "bab" * 40 + "!")


def test_long_texts_take_no_quadratic_time(tmp_path):
    """One word of 40 kB, and many added tokens with spaces around them."""
    value = changed("pre_tokenizer", to=None)
    value["added_tokens"][0] |= {"lstrip": True, "rstrip": True}
    tokenizer = load(tmp_path, value)
    assert len(tokenizer.encode("ab" * 20_000)) == 20_001
    assert len(tokenizer.encode("  <|end|>  " * 4_000)) == 4_001


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "regex", None)
    patterns._compiled.cache_clear()
    assert "needs the package regex" in refused(tmp_path, GOOD)


def mutated(value, draw):
    """`value` with one part, at any depth, replaced by something else."""
    junk = st.sampled_from(
        [None, True, -1, 2**70, 0.5, "", "x", "\ud800", [], [[]], {}, {"type": 1}]
    )
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = draw(st.sampled_from(sorted(keys)))
    inner = value[key]
    if isinstance(inner, dict | list) and inner and draw(st.integers(0, 3)):
        mutated(inner, draw)
    else:
        value[key] = draw(junk)


@settings(max_examples=examples(300))
@given(data=st.data())
def test_any_change_is_refused_or_usable(tmp_path_factory, data):
    value = copy.deepcopy(GOOD)
    for _ in range(data.draw(st.integers(1, 2))):
        mutated(value, data.draw)
    path = tmp_path_factory.getbasetemp() / "mutated.json"
    path.write_text(json.dumps(value))
    try:
        tokenizer = Tokenizer.load(path)
    except TokenizerError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    tokens = tokenizer.encode("ab a <|end|> 12 xb é")
    tokenizer.decode([token for token in tokens if token < tokenizer.vocab_size])
