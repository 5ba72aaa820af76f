"""The tokenizer against run.c's and sentencepiece's answers, a slow encoder, and broken files."""

import io
import json
import re
import struct
from itertools import pairwise
from random import Random

import pytest
import sentencepiece
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2np.text.bpe import merge
from llama2np.text.tokenizer import BOS, EOS, Decoder, Tokenizer, TokenizerError

FILES = {"llama32k": "llama32k/tokenizer.bin", "tok512": "stories260K/tok512.bin"}
BASE = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256))]

texts = st.text()  # any Unicode but surrogates
# What has pieces in a vocabulary, so that there is something to merge.
wordy = st.text("  aeinorst\n.,", max_size=60) | st.text("  théß日本🦙<0x4>\0", max_size=30)


def slow_encode(tokenizer, text):
    """run.c's way: look up every pair of neighbours, join the best, start over."""
    pieces, scores = tokenizer.pieces, tokenizer.scores
    ids = {piece: i for i, piece in enumerate(pieces)}
    tokens = [1]
    for character in [" ", *text] if text else []:
        spelled = character.encode()
        tokens += [ids[spelled]] if spelled in ids else [3 + byte for byte in spelled]
    while True:
        best = None
        for at in range(len(tokens) - 1):
            joined = ids.get(pieces[tokens[at]] + pieces[tokens[at + 1]])
            if joined is not None and scores[joined] > (scores[best[1]] if best else -1e10):
                best = at, joined
        if best is None:
            return tokens
        tokens[best[0] : best[0] + 2] = [best[1]]


def bin_of(pieces, scores):
    """The bytes of a tokenizer.bin."""
    data = struct.pack("<I", max(map(len, pieces), default=0))
    for piece, score in zip(pieces, scores, strict=True):
        data += struct.pack("<fi", score, len(piece)) + piece
    return data


@st.composite
def vocabularies(draw):
    """Specials, bytes, and some pieces over "ab é", in few different scores."""
    pieces = draw(st.lists(st.text("ab é", min_size=1, max_size=5), unique=True, max_size=20))
    pieces = BASE + [piece.encode() for piece in pieces]
    score = st.sampled_from([0.0, -1.0, -2.0, -1e9, -1e10, -2e10, 3.5])
    scores = draw(st.lists(score, min_size=len(pieces) - 259, max_size=len(pieces) - 259))
    return Tokenizer(pieces, [0.0] * 259 + scores)


@pytest.fixture(scope="module")
def llama32k(reference):
    return Tokenizer.load(reference / FILES["llama32k"])


@pytest.fixture(scope="module")
def trained():
    """A small model, as sentencepiece trains it on the spot."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat, and the other cat ate it", "naïve tea"]),
        model_writer=model,
        model_type="bpe",
        vocab_size=320,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def ours_and_theirs(tmp_path_factory, trained):
    path = tmp_path_factory.mktemp("trained") / "trained.model"
    path.write_bytes(trained)
    return Tokenizer.load(path), sentencepiece.SentencePieceProcessor(model_proto=trained)


@pytest.mark.parametrize("name", FILES)
def test_tokens_are_run_c_s(reference, name):
    tokenizer = Tokenizer.load(reference / FILES[name])
    cases = json.loads((reference / "tokenizer_cases.json").read_text())[name]
    assert len(cases) > 20
    for case in cases:
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]


def test_both_forms_of_a_tokenizer_are_the_same(reference, llama32k):
    model = Tokenizer.load(reference / "llama32k/tokenizer.model", vocab_size=32000)
    assert model.pieces == llama32k.pieces
    assert model.scores == llama32k.scores
    for case in json.loads((reference / "tokenizer_cases.json").read_text())["llama32k"]:
        assert model.encode(case["text"]) == case["ids"]


@given(text=texts | wordy)
def test_encode_is_the_slow_way_on_llama_2(llama32k, text):
    assert llama32k.encode(text) == slow_encode(llama32k, text)


@settings(max_examples=examples(300))
@given(tokenizer=vocabularies(), text=st.text("ab éc", max_size=25))
def test_encode_is_the_slow_way_on_any_vocabulary(tokenizer, text):
    """With many equal scores: of equals the leftmost pair joins first."""
    assert tokenizer.encode(text) == slow_encode(tokenizer, text)


@given(text=wordy | st.text("the cat,ïé\n日🦙", max_size=40))
def test_encode_is_sentencepiece_s(ours_and_theirs, text):
    ours, theirs = ours_and_theirs
    assert ours.encode(text, bos=False) == theirs.encode(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("aaa", [1, 259, 261, 260]),  # the leftmost pair of equals: " ", "aa", "a"
        ("aaaaa", [1, 259, 262, 260]),
        ("ab", [1, 259, 263]),  # and no " a": what scores -1e10 never joins
        ("aab", [1, 259, 260, 263]),  # the better pair wins over the one before it
        ("cé", [1, 259, 3 + ord("c"), 3 + 0xC3, 3 + 0xA9]),  # no pieces, so their bytes
        ("", [1]),
    ],
)
def test_a_vocabulary_by_hand(text, expected):
    pieces = [*BASE, b" ", b"a", b"aa", b"aaaa", b"ab", b" a", b"b", b"aa"]  # "aa" twice
    tokenizer = Tokenizer(pieces, [0.0] * 259 + [-5, -5, -2, -3, -1, -1e10, -5, -2])
    assert tokenizer.encode(text) == expected


def test_bos_and_eos_are_asked_for():
    tokenizer = Tokenizer([*BASE, b" "], [0.0] * 260)
    assert tokenizer.encode("A") == [BOS, 259, 68]
    assert tokenizer.encode("A", bos=False, eos=True) == [259, 68, EOS]
    assert tokenizer.encode("", bos=False) == []


def test_without_byte_pieces_an_unknown_character_is_unknown():
    tokenizer = Tokenizer([b"<unk>", b"\n<s>\n", b"\n</s>\n", b" ", b"a"], [0.0] * 5)
    assert tokenizer.encode("aéa") == [1, 3, 4, 0, 4]


@given(text=texts | wordy)
def test_decode_undoes_encode(llama32k, text):
    """To the letter with BOS; without it the leading space stays."""
    assert llama32k.decode(llama32k.encode(text)) == text
    assert llama32k.decode(llama32k.encode(text, eos=True)) == text
    assert llama32k.decode(llama32k.encode(text, bos=False)) == (" " + text if text else "")


@given(tokenizer=vocabularies(), text=texts | wordy)
def test_decode_undoes_encode_on_any_vocabulary(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(first=wordy, second=wordy)
def test_decode_joins_texts_that_begin_with_bos(llama32k, first, second):
    assert llama32k.decode(llama32k.encode(first) + llama32k.encode(second)) == first + second


@given(tokens=st.lists(st.integers(0, 600) | st.integers(0, 31999), max_size=40))
def test_decode_is_the_bytes_of_the_pieces(llama32k, tokens):
    """For tokens in any order: byte tokens as bytes, no BOS and EOS, broken UTF-8 replaced."""
    spelled, previous = b"", None
    for token in tokens:
        piece = llama32k.pieces[token]
        piece = bytes([token - 3]) if 3 <= token < 259 else b"" if token in (1, 2) else piece
        spelled += piece[1:] if previous == 1 and piece[:1] == b" " else piece
        previous = token
    assert llama32k.decode(tokens) == spelled.decode(errors="replace")


@given(text=wordy, data=st.data())
def test_decoding_may_begin_anywhere_between_characters(llama32k, text, data):
    """A Decoder needs to know only the token before its first one."""
    tokens = llama32k.encode(text)
    at = data.draw(st.integers(1, len(tokens)))
    before, behind = Decoder(llama32k), Decoder(llama32k, previous=tokens[at - 1])
    shown = "".join(map(before.feed, tokens[:at]))
    if before.flush() == "":
        assert shown + "".join(map(behind.feed, tokens[at:])) == text


@pytest.mark.parametrize("character", "éक日🦙")
def test_a_character_appears_with_the_last_of_its_bytes(character):
    tokenizer = Tokenizer(BASE, [0.0] * 259)
    decoder = Decoder(tokenizer)
    tokens = [3 + byte for byte in character.encode()]
    assert [decoder.feed(token) for token in tokens] == [""] * (len(tokens) - 1) + [character]
    assert decoder.flush() == ""


@pytest.mark.parametrize(
    ("spelled", "pieces", "rest"),
    [
        (b"\xc3", [""], "\ufffd"),
        (b"\xf0\x9f\xa6", ["", "", ""], "\ufffd"),
        (b"\xff", ["\ufffd"], ""),
        (b"\xa6", ["\ufffd"], ""),
        (b"\xf0\x9fA", ["", "", "\ufffdA"], ""),
        (b"\xc3\xc3\xa9", ["", "\ufffd", "é"], ""),
    ],
)
def test_broken_bytes_are_replaced(spelled, pieces, rest):
    decoder = Decoder(Tokenizer(BASE, [0.0] * 259))
    assert [decoder.feed(3 + byte) for byte in spelled] == pieces
    assert decoder.flush() == rest


def test_the_pair_of_the_lowest_priority_is_merged_next():
    """With any priorities; the slow way looks at all pairs for each merge."""
    random = Random(0)
    for _ in range(50):
        pairs = [(a, b) for a in range(9) for b in range(9) if random.random() < 0.7]
        joins = {pair: (random.random(), random.randrange(9)) for pair in pairs}
        tokens = random.choices(range(9), k=30)
        found = merge(tokens, lambda a, b, joins=joins: joins.get((a, b)))
        while ways := [(*joins[two], i) for i, two in enumerate(pairwise(tokens)) if two in joins]:
            _, joined, i = min(ways, key=lambda way: way[::2])
            tokens[i : i + 2] = [joined]
        assert found == tokens


@pytest.mark.parametrize("unit", ["the cat sat. ", "a", " ", "🦙"])
def test_long_texts_take_no_quadratic_time(llama32k, unit):
    """20 kB: looking at all pairs for each join would take minutes."""
    text = unit * (20_000 // len(unit.encode()))
    tokens = llama32k.encode(text)
    assert 1000 < len(tokens) <= 20_002
    assert llama32k.decode(tokens) == text


@pytest.mark.parametrize("text", ["\ud800", "ab\udc80", "🦙\udfff"])
def test_a_lone_surrogate_is_refused(text):
    tokenizer = Tokenizer([*BASE, b" "], [0.0] * 260)
    with pytest.raises(ValueError, match=f"UTF-8 at character {len(text) - 1}"):
        tokenizer.encode(text)


def test_pieces_and_scores_come_in_pairs():
    with pytest.raises(ValueError, match="2 pieces but 1 scores"):
        Tokenizer([b"a", b"b"], [0.0])


GOOD = bin_of([*BASE, b" ", b"the", "é".encode()], [-float(i) for i in range(262)])
MODEL = struct.pack("<7i", 64, 172, 5, 8, 4, 512, 512) + struct.pack("<2000f", *[0.02] * 2000)


def load_error(path, **options):
    """What loading this file says; it has to name the file."""
    with pytest.raises((TokenizerError, OSError)) as error:
        Tokenizer.load(path, **options)
    assert str(path) in str(error.value)
    return str(error.value)


def test_a_good_file_loads(tmp_path):
    (tmp_path / "good.bin").write_bytes(GOOD)
    tokenizer = Tokenizer.load(str(tmp_path / "good.bin"), vocab_size=262)
    assert (tokenizer.pieces[:259], tokenizer.vocab_size) == (BASE, 262)
    assert tokenizer.scores == [-float(i) for i in range(262)]
    assert tokenizer.encode("é") == [1, 259, 261]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "an empty file", id="empty"),
        pytest.param(b"\0bc", "3 bytes, expected 4", id="3 bytes"),
        pytest.param(GOOD[:-1], "middle of piece 261: truncated", id="truncated"),
        pytest.param(MODEL, "not a tokenizer|truncated", id="model"),
        pytest.param(b"Once upon a time\n" * 99, "not a tokenizer|truncated", id="text"),
        pytest.param(bin_of([b"a"], [0])[:8] + b"\xff" * 8, "claims -1 bytes", id="negative"),
        pytest.param(bin_of([b"a", b""], [0, 0]), "piece 1 claims 0 bytes", id="no length"),
        pytest.param(b"\1\0\0\0" + bin_of([b"ab"], [0])[4:], "2 bytes.* 1 to 1", id="too long"),
    ],
)
def test_a_bad_bin_is_refused(tmp_path, data, message):
    (tmp_path / "bad.bin").write_bytes(data)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(tmp_path / "bad.bin")
    load_error(tmp_path / "bad.bin")


@pytest.mark.parametrize("name", ["few.bin", "few.model"])
def test_a_file_without_pieces_is_refused(tmp_path, name, capfd):
    """And nothing but the exception speaks: sentencepiece logs to standard error."""
    (tmp_path / name).write_bytes(b"\1\0\0\0" if name == "few.bin" else b"")
    load_error(tmp_path / name)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("end", range(0, len(GOOD), len(GOOD) // 50))
def test_a_truncated_bin_is_refused(tmp_path, end):
    (tmp_path / "cut.bin").write_bytes(GOOD[:end])
    load_error(tmp_path / "cut.bin", vocab_size=262)


@pytest.mark.parametrize("vocab_size", [1, 261, 262 + 2**13 + 1, 32000])
def test_another_vocabulary_is_refused(tmp_path, vocab_size):
    (tmp_path / "other.bin").write_bytes(GOOD)
    message = load_error(tmp_path / "other.bin", vocab_size=vocab_size)
    assert "262" in message and f"{vocab_size:,}" in message and "-z" in message


def test_a_folder_and_no_file_are_refused(tmp_path):
    assert "directory" in load_error(tmp_path)
    assert "No such file" in load_error(tmp_path / "none.bin")
    assert "No such file" in load_error(tmp_path / "none.model")


@pytest.mark.parametrize("data", [b"x", b"Once upon a time\n" * 9, bytes(99), MODEL])
def test_a_bad_sentencepiece_model_is_refused(tmp_path, data, capfd):
    (tmp_path / "bad.model").write_bytes(data)
    said = load_error(tmp_path / "bad.model")
    assert re.search("not a (tokenizer.json, tokenizer.bin or )?sentencepiece model", said)
    assert capfd.readouterr() == ("", "")


def test_the_contents_tell_the_form_not_the_name(tmp_path, trained):
    (tmp_path / "t.model").write_bytes(GOOD)
    assert Tokenizer.load(tmp_path / "t.model").vocab_size == 262
    (tmp_path / "t.bin").write_bytes(trained)
    (tmp_path / "u.model").write_bytes(trained)
    a, b = (Tokenizer.load(tmp_path / name) for name in ("t.bin", "u.model"))
    assert a.pieces == b.pieces and a.scores == b.scores


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_sentencepiece_model_is_refused(tmp_path, trained, share):
    (tmp_path / "cut.model").write_bytes(trained[: int(len(trained) * share)])
    load_error(tmp_path / "cut.model", vocab_size=320)


def test_a_sentencepiece_model_with_broken_pieces_is_refused(tmp_path, trained):
    assert "▁the".encode() in trained
    (tmp_path / "bad.model").write_bytes(trained.replace("▁the".encode(), b"\xff\x96\x81the"))
    load_error(tmp_path / "bad.model")


def damaged(good):
    """`good` with some bytes overwritten, perhaps cut off."""
    changes = st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), max_size=4)

    def damage(changes, end):
        data = bytearray(good)
        for at, byte in changes:
            data[at] = byte
        return bytes(data[:end])

    return st.builds(damage, changes, st.just(len(good)) | st.integers(0, len(good)))


@settings(max_examples=examples(400))
@given(data=damaged(GOOD) | damaged(bin_of([b"a", b"bc", b"def"], [0, -1, -2])) | st.binary())
def test_a_damaged_bin_is_refused_or_usable(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    path.write_bytes(data)
    try:
        tokenizer = Tokenizer.load(path)
    except TokenizerError as error:
        assert str(path) in str(error)
        return
    assert tokenizer.vocab_size == len(tokenizer.pieces) == len(tokenizer.scores)
    if tokenizer.vocab_size >= 259:  # whatever its pieces and scores have become
        tokenizer.decode(tokenizer.encode("the cat é"))
