"""Tokenizers of Hugging Face folders against the package `tokenizers`: its recorded answers, and
itself, on texts that hypothesis makes.
"""

import json
import shutil

import pytest
from conftest import examples, missing, writable_copy
from hypothesis import given, settings
from hypothesis import strategies as st
from random_tokenizer import Maker

from llama2np import Tokenizer
from llama2np.text.decoder import Decoder

BYTE_LEVEL = ("gpt2", "llama3", "qwen2", "smollm2")
PIECES = ("llama2_legacy", "llama2_metaspace", "gemma")
BERT = ("bert_uncased", "bert_cased")
NAMES = (*BYTE_LEVEL, *PIECES, *BERT)
# What a folder has beside tokenizer.json, and makes the same tokens.
OTHER_FORMS = [("gpt2", "vocab.json"), ("gpt2", "merges.txt")]
OTHER_FORMS += [(name, "vocab.txt") for name in BERT]
SPECIAL = "<s> </s> <unk> <|endoftext|> <|im_start|> <|eot_id|> [CLS] [MASK] <end_of_turn>".split()
texts = st.text(max_size=30) | st.text(
    "  \n\t\r abcdeXYZ0195'’stmrvldSTM.,!?-_▁ĠéßÅ日本🦙\u0301İΣς½²Ⅳ\x85\u2028\xa0\x00\x1c",
    max_size=40,
)
mixed = st.lists(texts | st.sampled_from(SPECIAL), max_size=5).map("".join)


@pytest.fixture(scope="module")
def folders(reference):
    return reference / "tokenizers"


@pytest.fixture(scope="module")
def ours(folders):
    return {name: Tokenizer.load(folders / name) for name in NAMES}


@pytest.fixture(scope="module")
def theirs(folders):
    try:
        import tokenizers
    except ImportError:
        missing("the package tokenizers is not installed")
    load = tokenizers.Tokenizer.from_file
    return {name: load(str(folders / name / "tokenizer.json")) for name in NAMES}


def check_cases(tokenizer, folder):
    cases = json.loads((folder / "cases.json").read_text())
    assert len(cases["cases"]) == 85
    for case in cases["cases"]:
        ids = case["ids_no_special"]
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]
        assert tokenizer.encode(case["text"], bos=False) == ids
        assert tokenizer.decode(ids) == case["decoded"]
        assert tokenizer.decode(case["ids"], skip_special=True) == case["decoded_skip_special"]
    for case in cases.get("pairs", ()):
        assert tokenizer.encode_pair(case["a"], case["b"]) == (case["ids"], case["type_ids"])


@pytest.mark.parametrize("name", NAMES)
def test_all_cases(ours, folders, name):
    check_cases(ours[name], folders / name)


@pytest.mark.parametrize("name, form", OTHER_FORMS)
def test_other_forms(folders, name, form, tmp_path):
    """By the file's name, and alone in a folder."""
    check_cases(Tokenizer.load(folders / name / form), folders / name)
    shutil.copytree(folders / name, tmp_path / "x", ignore=lambda *_: ["tokenizer.json"])
    check_cases(Tokenizer.load(tmp_path / "x"), folders / name)


@pytest.mark.parametrize("name", PIECES)
def test_tokenizer_model_beside_it(folders, name, tmp_path):
    """sentencepiece reads no names of special tokens, unless it is told; and Metaspace is another
    algorithm where a text begins with spaces (architectures: where implementations differ).
    """
    shutil.copytree(folders / name, tmp_path / "x", ignore=lambda *_: ["tokenizer.json"])
    tokenizer = Tokenizer.load(tmp_path / "x")
    expected = "llama2_legacy" if name == "llama2_metaspace" else name
    names = [token.content for token in tokenizer._algorithm.added]
    for case in json.loads((folders / expected / "cases.json").read_text())["cases"]:
        assert tokenizer.encode(case["text"], special=True) == case["ids"], case["text"]
        if not any(name in case["text"] for name in names):
            assert tokenizer.encode(case["text"]) == case["ids"]
            assert tokenizer.decode(case["ids"]) == case["decoded"]


@settings(max_examples=examples(30))
@given(text=mixed, other=texts)
def test_any_text_has_their_tokens(ours, theirs, text, other):
    for name in NAMES:
        expected = theirs[name].encode(text)
        assert ours[name].encode(text) == expected.ids, name
        for skip in (False, True):
            shown = theirs[name].decode(expected.ids, skip_special_tokens=skip)
            if "\ufffd" not in shown:  # SmolLM2 drops bytes, and what is left may be no UTF-8
                assert ours[name].decode(expected.ids, skip) == shown
        pair = theirs[name].encode(text, other)
        assert ours[name].encode_pair(text, other) == (pair.ids, pair.type_ids)


@settings(max_examples=examples(60))
@given(data=st.data())
def test_any_tokens_have_their_text(ours, theirs, data):
    for name in NAMES:
        token = st.integers(0, ours[name].vocab_size - 1)
        tokens, skip = data.draw(st.lists(token, max_size=8)), data.draw(st.booleans())
        shown = theirs[name].decode(tokens, skip_special_tokens=skip)
        if "\ufffd" not in shown:
            assert ours[name].decode(tokens, skip) == shown, name


@settings(max_examples=examples(30))
@given(text=texts)
def test_byte_level_bpe_loses_nothing(ours, text):
    for name in ("gpt2", "llama3"):  # Qwen2 has a normalizer, SmolLM2 lacks bytes
        assert ours[name].decode(ours[name].encode(text, bos=False)) == text


@settings(max_examples=examples(40))
@given(data=st.data(), skip=st.booleans())
def test_a_stream_is_what_decode_returns(ours, data, skip):
    for name in NAMES:
        tokenizer = ours[name]
        token = st.integers(0, tokenizer.vocab_size - 1)
        tokens = data.draw(st.lists(token, max_size=12) | mixed.map(tokenizer.encode))
        decoder = Decoder(tokenizer, skip_special=skip)
        pieces = [decoder.feed(token) for token in tokens]
        assert "".join(pieces) + decoder.flush() == tokenizer.decode(tokens, skip)


@pytest.mark.parametrize("name", BYTE_LEVEL[:3] + PIECES)
@pytest.mark.parametrize("character", "éक日🦙")
def test_a_character_comes_with_its_last_token(ours, name, character):
    tokens = ours[name].encode("a" + character, bos=False)
    decoder = Decoder(ours[name])
    pieces = [decoder.feed(token) for token in tokens]
    assert "".join(pieces) == "a" + character
    assert pieces[-1].endswith(character) and "\ufffd" not in "".join(pieces)


def test_special_tokens(ours, folders, tmp_path):
    bert, llama, gemma, qwen = (ours[n] for n in ("bert_cased", "llama3", "gemma", "qwen2"))
    names = {i: bert.pieces[i].decode() for i in bert.special_ids}
    found = [names[i] for i in (bert.pad_id, bert.cls_id, bert.sep_id, bert.mask_id)]
    assert found == ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    assert (bert.bos_id, bert.eos_id, bert.adds_bos) == (None, None, False)
    path = folders / "bert_cased" / "vocab.txt"
    for source in ("vocab.txt", "tokenizer.json"):  # without a tokenizer_config.json
        shutil.copyfile(path.with_name(source), tmp_path / source)
        alone = Tokenizer.load(tmp_path / source)
        assert (alone.special, alone.bos_id) == (bert.special, None)
    (tmp_path / "vocab.txt").write_text("\ufeff" + path.read_text())  # a BOM, as from Windows
    assert Tokenizer.load(tmp_path / "vocab.txt").pieces == bert.pieces
    assert llama.encode("a")[0] == llama.bos_id and llama.adds_bos
    assert (gemma.bos_id, gemma.eos_id) == (2, 1)
    assert qwen.bos_id is None and qwen.pieces[qwen.eos_id] == b"<|im_end|>"
    assert not ours["gpt2"].adds_bos and ours["gpt2"].bos_id == ours["gpt2"].eos_id == 566


def test_names_of_special_tokens_may_be_plain_text(ours):
    """As the user's words in a chat should be."""
    for name in NAMES:
        tokenizer = ours[name]
        for token in tokenizer.special_ids:
            text = tokenizer.pieces[token].decode()
            assert token in tokenizer.encode(f"a {text} b", bos=False)
            assert token not in tokenizer.encode(f"a {text} b", bos=False, special=False) or (
                text in ("[UNK]", "<unk>")
            )


def test_what_the_models_files_say(folders, tmp_path):
    """generation_config.json and config.json name tokens that end a text; names may be objects."""
    folder = writable_copy(folders / "llama3", tmp_path / "x")
    (folder / "generation_config.json").write_text('{"eos_token_id": [577, 580]}')
    (folder / "config.json").write_text('{"eos_token_id": [581, -1], "model_type": "llama"}')
    path = folder / "tokenizer_config.json"
    told = json.loads(path.read_text()) | {"eos_token": {"content": "<|eot_id|>", "lstrip": False}}
    path.write_text(json.dumps(told))
    tokenizer = Tokenizer.load(folder, vocab_size=600)
    assert tokenizer.ends == {576, 577, 580, 581} and tokenizer.eos_id == 580
    assert list(tokenizer.missing) == list(range(582, 600))
    assert tokenizer.decode([599, 581]) == "<|reserved_special_token_0|>"
    assert tokenizer.encode("Hello") == Tokenizer.load(folders / "llama3").encode("Hello")
    alone = tmp_path / "alone.json"  # without settings, BOS is what the template puts first
    shutil.copyfile(folder / "tokenizer.json", alone)
    tokenizer = Tokenizer.load(alone)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.chat_template) == (576, None, None)


def test_truncation_and_padding_are_ignored(folders, tmp_path):
    """all-MiniLM's tokenizer.json asks for 128 tokens."""
    value = json.loads((folders / "bert_uncased/tokenizer.json").read_text())
    value["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0}
    value["padding"] = {"strategy": {"Fixed": 128}, "pad_id": 0, "pad_token": "[PAD]"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    check_cases(Tokenizer.load(tmp_path), folders / "bert_uncased")


def test_added_tokens_beyond_the_model_are_left_out(folders):
    """A model may lack the rows of tokens that were added to its tokenizer."""
    tokenizer = Tokenizer.load(folders / "llama3", vocab_size=580)
    assert tokenizer.vocab_size == 580
    assert max(tokenizer.encode("a<|eot_id|>b<|end_header_id|>")) == 579


# --- the parts of a GGUF file ---


def described(folders, name):
    return json.loads((folders / name / "tokenizer.json").read_text())


def parts_of(folders, name):
    """The pieces, their types and the special tokens, as a GGUF file has them."""
    told = described(folders, name)
    ids = dict(told["model"]["vocab"])
    ids |= {token["content"]: token["id"] for token in told["added_tokens"]}
    pieces = [""] * (max(ids.values()) + 1)
    for piece, i in ids.items():
        pieces[i] = piece
    types = [6 if piece[:3] == "<0x" and len(piece) == 6 else 1 for piece in pieces]
    for token in told["added_tokens"]:
        types[token["id"]] = 3
    config = json.loads((folders / name / "tokenizer_config.json").read_text())
    names = ("bos_token", "eos_token", "unk_token", "cls_token", "sep_token", "mask_token")
    special = {n: ids[config[n]] for n in names if config.get(n)}
    return pieces, {"types": types, "special": special}


@pytest.mark.parametrize(
    "name, pre",
    [("gpt2", "default"), ("gpt2", "gpt-2"), ("llama3", "llama-bpe"), ("qwen2", "qwen2"),
     ("smollm2", "smollm")],
)  # fmt: skip
def test_byte_level_bpe_of_gguf(folders, name, pre):
    pieces, parts = parts_of(folders, name)
    merges = [" ".join(pair) for pair in described(folders, name)["model"]["merges"]]
    tokenizer = Tokenizer.from_parts("gpt2", pieces, merges=merges, pre=pre, **parts)
    check_cases(tokenizer, folders / name)


@pytest.mark.parametrize("name", ("llama2_legacy", "gemma"))
def test_sentencepiece_of_gguf(folders, name):
    """Merging by scores gives the tokens of merging by ranks."""
    pieces, parts = parts_of(folders, name)
    scores = Tokenizer.load(folders / name / "tokenizer.model").scores
    prefix = name != "gemma"
    tokenizer = Tokenizer.from_parts(
        "llama", pieces, scores=scores, add_space_prefix=prefix, **parts
    )
    check_cases(tokenizer, folders / name)


def test_bert_of_gguf(folders):
    pieces, parts = parts_of(folders, "bert_uncased")
    kinds = zip(pieces, parts["types"], strict=True)
    marked = [p if t == 3 else p[2:] if p.startswith("##") else f"▁{p}" for p, t in kinds]
    check_cases(Tokenizer.from_parts("bert", marked, **parts), folders / "bert_uncased")
    check_cases(Tokenizer.from_parts("bert", pieces, **parts), folders / "bert_uncased")


def test_settings_of_gguf(folders):
    pieces, parts = parts_of(folders, "llama3")
    made = {"merges": [], "pre": "llama-bpe", **parts, "ends": [577], "chat_template": "{{ 1 }}"}
    tokenizer = Tokenizer.from_parts("gpt2", pieces, add_bos=False, add_eos=True, **made)
    assert tokenizer.encode("") == [580] and tokenizer.ends == {576, 577, 580}
    assert tokenizer.apply_chat_template([]) == "1"


@pytest.mark.parametrize(
    "kind, change, message",
    [
        ("unigram", {}, "the algorithm 'unigram' is not supported; expected llama, gpt2, bert"),
        ("gpt2", {"pre": "qwen3"}, "the pre-tokenizer 'qwen3' is not supported; these are: defau"),
        ("gpt2", {"merges": ["a zz"]}, r"merges\[0\] is 'a zz', but 'zz' is not in the vocabulary"),
        ("gpt2", {"merges": [5]}, r"merges\[0\] is 5, expected two pieces"),
        ("gpt2", {"types": [1]}, "has 3 pieces but 1 types"),
        ("gpt2", {}, "has no merges, which the algorithm gpt2 needs"),
        ("llama", {}, "has no scores, which the algorithm llama needs"),
        ("llama", {"scores": [1]}, "has 3 pieces but 1 scores"),
        ("bert", {}, r"needs the tokens \[CLS\], \[SEP\] and \[UNK\]"),
    ],
)
def test_parts_that_do_not_fit(kind, change, message):
    with pytest.raises(ValueError, match=f"x.gguf: {message}"):
        Tokenizer.from_parts(kind, ["a", "b", "c"], where="x.gguf", **change)


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("right", [True, False])
def test_strip(folders, theirs, tmp_path, left, right):
    value = json.loads((folders / "gpt2" / "tokenizer.json").read_text())
    value["normalizer"] = {"type": "Strip", "strip_left": left, "strip_right": right}
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    text = "  a b\t "
    expected = theirs["gpt2"].encode(text[2 * left :][: -2 if right else None]).ids
    assert Tokenizer.load(tmp_path).encode(text) == expected


# --- tokenizers of random parts ---


@pytest.mark.parametrize("seed", range(60))
def test_random_parts(theirs, tmp_path, seed):
    """All parts that the package reads, in combinations that no model has."""
    import tokenizers

    maker = Maker(seed)
    value = maker.tokenizer()
    if '"first"' in json.dumps(value) and value["normalizer"]:
        value["normalizer"] = {"type": "NFC"}  # see docs/differences.md
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    tokenizer = Tokenizer.load(tmp_path)
    other = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for _ in range(examples(50)):
        a, b = maker.sentence(value["added_tokens"]), maker.text(6)
        expected, pair = other.encode(a), other.encode(a, b)
        assert tokenizer.encode(a) == expected.ids, (a, value)
        assert tokenizer.encode_pair(a, b) == (pair.ids, pair.type_ids), (a, b, value)
        shuffled = maker.random.choices(range(tokenizer.vocab_size), k=5)
        for tokens in (expected.ids, shuffled):
            for skip in (False, True):
                shown = other.decode(tokens, skip_special_tokens=skip)
                if "\ufffd" not in shown:
                    assert tokenizer.decode(tokens, skip) == shown, (tokens, value)
