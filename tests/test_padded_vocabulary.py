"""Models with more rows than their tokenizer has pieces: for padding, and for added tokens."""

import io
import json

import numpy as np
import pytest
import sentencepiece
from conftest import TINY, letters, scripted, write_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from llama2np import DraftModel, Llama, State, Tokenizer, TokenizerError, Transformer, beam_search
from llama2np.analysis.evaluation import compare, evaluate
from llama2np.analysis.lens import labels
from llama2np.cli.lens import main as lens
from llama2np.cli.run import main as run
from llama2np.decoding.beam import Beam
from llama2np.decoding.chat import Chat
from llama2np.decoding.generation import Generation
from llama2np.decoding.logits import forbid
from llama2np.decoding.sampler import Sampler
from llama2np.formats import checkpoint as checkpoints
from llama2np.formats.checkpoint import Header
from llama2np.text.tokenizer import Decoder

PIECES = 290  # of the TINY's 300
MISSING = list(range(PIECES, TINY.vocab_size))


@pytest.fixture
def path(write, tmp_path):
    """A checkpoint whose most probable tokens have no piece, and its tokenizer."""
    write_tokenizer(tmp_path / "tokenizer.bin", PIECES)
    path = write("m.bin", Header(1, TINY, False))
    data = bytearray(path.read_bytes())  # the classifier is the last tensor
    rows = np.frombuffer(data, np.float32, TINY.vocab_size * TINY.dim, len(data) - 300 * 48 * 4)
    rows.reshape(300, 48)[PIECES:] *= 30
    path.write_bytes(data)
    return path


@pytest.fixture
def padded(path):
    return Llama.load(path)


def test_the_rows_without_a_piece(padded):
    assert padded.tokenizer.vocab_size == 300
    assert padded.tokenizer.missing.tolist() == MISSING
    assert padded.tokenizer.pieces[PIECES:] == [b""] * 10
    # The case is one: the network wants what it may not have.
    logits = padded.forward([1], padded.new_state())
    assert logits.argmax() in MISSING


@pytest.mark.parametrize(
    "options",
    (
        dict(temperature=0),
        dict(temperature=1, top_p=1),
        dict(temperature=3, top_p=0.9),
        dict(temperature=1, top_k=3),
        dict(temperature=1, min_p=0.1),
        dict(temperature=0, repetition_penalty=1.3),
        dict(temperature=0, logit_bias={295: -5.0}),
        dict(temperature=0, presence_penalty=0.5),
    ),
    ids=str,
)
def test_they_are_not_chosen(padded, options):
    allowed = {token for token in options.get("logit_bias", ())}
    for seed in (1, 2):
        story = padded.generate("AB", max_new_tokens=40, seed=seed, logprobs=2, **options)
        assert story.read()
        assert not set(story.tokens) & (set(MISSING) - allowed)
        assert any(set(top) & set(MISSING) for top in story.top_logprobs)  # the model's own view


@pytest.mark.compiled
def test_greedy_is_the_best_of_those_with_a_piece(padded):
    """Also if a small network generates several tokens in one call."""
    assert padded.transformer.max_greedy_tokens > 1
    story = padded.generate("AB", temperature=0, max_new_tokens=40)
    story.read()
    state, tokens = padded.new_state(), padded.tokenizer.encode("AB")
    for token in story.tokens:
        assert token == padded.forward(tokens, state)[:PIECES].argmax()
        tokens = [token]


def test_a_user_may_let_one_in(padded):
    story = padded.generate("AB", temperature=0, logit_bias={295: 1e6}, max_new_tokens=3)
    assert story.read() == "" and story.tokens == [295] * 3

    def want(tokens, logits):
        assert np.isneginf(logits[MISSING]).all() and logits.shape == (300,)
        logits[299] = 1e9
        return logits

    story = padded.generate("AB", temperature=0, logits_processor=want, max_new_tokens=3)
    assert story.read() == "" and story.tokens == [299] * 3


def test_they_are_printed_as_nothing(padded):
    tokens = padded.tokenizer.encode("AB")
    assert padded.tokenizer.decode([*tokens, 299, *letters("C")]) == "ABC"
    assert labels(padded.tokenizer, [260, 299]) == ["A", ""]
    assert padded.generate([*tokens, 299], temperature=0, max_new_tokens=5).read()
    with pytest.raises(ValueError, match="token 300 is not in the vocabulary of 0 to 299"):
        padded.tokenizer.decode([300])


def test_a_generation_and_a_chat_made_by_hand(padded, tmp_path):
    bare = Tokenizer.load(tmp_path / "tokenizer.bin")
    assert bare.vocab_size == PIECES
    options = dict(state=padded.new_state(), max_new_tokens=20)
    story = Generation(padded.transformer, bare, [1, 260], Sampler(0), **options)
    chat = Chat(padded.transformer, bare, Sampler(0))
    list(story), list(chat.send("A"))
    assert not {*story.tokens, *chat._tokens} & set(MISSING)


def test_chat(padded):
    chat = padded.chat(temperature=0)
    list(chat.send("A"))
    assert not set(chat._tokens) & set(MISSING)


def test_beams(padded):
    found = beam_search(padded, padded.tokenizer.encode("AB"), beams=4, max_new_tokens=6)
    assert len(found) == 4
    assert not {token for beam in found for token in beam.tokens} & set(MISSING)
    all_of_them = beam_search(padded, [1], beams=400, max_new_tokens=1)
    assert sorted(beam.tokens[0] for beam in all_of_them) == list(range(PIECES))
    bare = beam_search(padded.transformer, [1], beams=4, max_new_tokens=1)
    assert {token for beam in bare for token in beam.tokens} & set(MISSING)
    assert Beam((5, 2)).ended and Beam((1,)).ended and not Beam((5,)).ended


def test_drafts(padded, write, tmp_path):
    """Of models with more rows and with fewer than the one that they guess for."""
    expected = padded.generate("AB", temperature=0, max_new_tokens=30)
    expected.read()
    larger = Llama(
        Transformer(*checkpoints.load(write("d.bin", Header(1, padded_config(310), True)))),
        padded.tokenizer,
    )
    smaller = Llama(
        Transformer(*checkpoints.load(write("e.bin", Header(1, padded_config(PIECES), True)))),
        Tokenizer.load(tmp_path / "tokenizer.bin"),
    )
    for draft in (
        DraftModel(padded),
        DraftModel(padded.transformer),
        DraftModel(larger),
        DraftModel(larger.transformer),
        DraftModel(smaller),
        lambda tokens: [299, 300, 10**6],
        lambda tokens: [-1],
    ):
        story = padded.generate("AB", temperature=0, max_new_tokens=30, draft=draft)
        story.read()
        assert story.tokens == expected.tokens
    assert not set(DraftModel(padded, ahead=8)(np.array([1, 261]))) & set(MISSING)
    assert DraftModel(smaller)(np.array([1, 295])) == []


def padded_config(rows):
    return checkpoints.Config(
        dim=48, hidden_dim=80, n_layers=3, n_heads=6, n_kv_heads=2, vocab_size=rows, seq_len=96
    )


def test_perplexity_is_the_network_s(padded):
    """All rows are in the softmax: they are what the network says."""
    text = "ABCABC"
    tokens = padded.tokenizer.encode(text)
    logits = padded.forward(tokens[:-1], State(TINY), all_logits=True).astype(float)
    chosen = logits[np.arange(len(tokens) - 1), tokens[1:]]
    nats = (np.log(np.exp(logits).sum(1)) - chosen).sum()
    assert evaluate(padded, text).nats == pytest.approx(nats, rel=1e-5)
    assert compare(padded, padded, text).agreement == 1


def test_the_commands(path, capsys, tmp_path, monkeypatch):
    words = [str(path), "-t", "0", "-i", "AB"]
    assert run([*words, "-n", "20", "--logprobs", "3"], "run.py") == 0
    out, err = capsys.readouterr()
    assert out.startswith("AB") and "''" in err  # a row without a piece is among them
    assert lens([str(path), "-i", "AB"], "lens") == 0
    assert "block 2" in capsys.readouterr().out
    assert run([str(path), "-m", "chat", "-y", "", "-i", "A", "-t", "0", "-n", "60"], "run.py") == 0


def test_fewer_rows_than_pieces_are_refused(path, tmp_path):
    write_tokenizer(tmp_path / "tokenizer.bin", 301)
    with pytest.raises(TokenizerError, match="holds 301 pieces, the model's vocabulary is 300"):
        Llama.load(path)


def test_a_tokenizer_that_is_far_too_small_is_another_model_s(tmp_path):
    tokenizer = write_tokenizer(tmp_path / "t.bin", PIECES)
    assert Tokenizer.load(tokenizer, PIECES + 2**13).vocab_size == PIECES + 2**13
    for rows in (PIECES + 2**13 + 1, 32000):
        with pytest.raises(TokenizerError, match=f"holds 290 pieces.*is {rows:,}.*-z"):
            Tokenizer.load(tokenizer, rows)


@given(st.lists(st.floats(width=32), min_size=5, max_size=9), st.sets(st.integers(0, 4)))
def test_forbid(logits, tokens):
    before = np.array(logits, np.float32)
    after = forbid(before, sorted(tokens))
    np.testing.assert_array_equal(before, np.array(logits, np.float32))
    for i, value in enumerate(after):
        np.testing.assert_equal(value, -np.inf if i in tokens else before[i])
    assert (after is before) == (not tokens)


# --- added tokens ---


@pytest.fixture
def folder(tmp_path):
    """A tokenizer.model of Llama's layout; its number of pieces is added to the path's name."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat, and the other cat ate it"]),
        model_writer=model,
        model_type="bpe",
        vocab_size=280,
        byte_fallback=True,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    return tmp_path


def config_of(tokens):
    return {"added_tokens_decoder": {str(i): {"content": text} for i, text in tokens.items()}}


@pytest.mark.parametrize(
    "files",
    (
        {"added_tokens.json": {"<pad>": 280, "<|im_end|>": 282}},
        {"tokenizer_config.json": config_of({1: "<s>", 280: "<pad>", 282: "<|im_end|>"})},
        {
            "added_tokens.json": {"<pad>": 280, "other": 282},
            "tokenizer_config.json": config_of({282: "<|im_end|>"}),
        },
    ),
    ids=("added_tokens.json", "tokenizer_config.json", "both"),
)
def test_added_tokens_are_read_beside_the_model(folder, write, files):
    for name, fields in files.items():
        (folder / name).write_text(json.dumps(fields))
    alone = Tokenizer.load(folder / "tokenizer.model")
    assert alone.vocab_size == 283 and alone.missing.tolist() == [281]
    path = write("m.bin", Header(1, TINY, True))
    model = Llama.load(path)  # finds the tokenizer.model beside it
    assert model.tokenizer.missing.tolist() == [281, *range(283, 300)]
    cat = model.tokenizer.encode("the cat")
    assert model.tokenizer.decode([*cat, 280, 282, 281]) == "the cat<pad><|im_end|>"
    assert labels(model.tokenizer, [280, 281]) == ["<pad>", ""]
    # In a text they are text, as "<s>" is.
    assert 280 not in model.tokenizer.encode("<pad>")
    assert model.tokenizer.decode(model.tokenizer.encode("<pad>")) == "<pad>"
    assert model.tokenizer.decode([280]) == "<pad>" and Decoder(alone).feed(282) == "<|im_end|>"


def test_an_added_token_may_be_chosen(folder, write, monkeypatch):
    (folder / "added_tokens.json").write_text('{"<pad>": 280}')
    model = Llama.load(write("m.bin", Header(1, TINY, True)))
    scripted(model, monkeypatch, [280, 280, 299])  # 299 has no piece: 0 is the best of the others
    story = model.generate("a", temperature=0, max_new_tokens=3)
    assert story.read() == "<pad><pad>" + model.tokenizer.shown.texts[0].decode()
    assert story.tokens == [280, 280, 0]


def test_added_tokens_that_the_model_has_no_row_for(folder):
    """Llama 2's chat models name a <pad> of 32000, and have 32,000 rows."""
    (folder / "added_tokens.json").write_text('{"<pad>": 280}')
    path = folder / "tokenizer.model"
    assert Tokenizer.load(path, 280).vocab_size == 280
    assert Tokenizer.load(path, 281).pieces[280] == b"<pad>"
    with pytest.raises(TokenizerError, match="holds 280 pieces, the model's vocabulary is 279"):
        Tokenizer.load(path, 279)


def test_an_id_out_of_all_proportion_takes_no_memory(folder):
    (folder / "added_tokens.json").write_text('{"<pad>": 280, "<far>": 1000000000000}')
    assert Tokenizer.load(folder / "tokenizer.model").vocab_size == 281


@pytest.mark.parametrize(
    "name, text, message",
    (
        ("added_tokens.json", '{"', "not valid JSON"),
        ("added_tokens.json", "<!DOCTYPE html>", "not a JSON file, but a web page (HTML)"),
        ("added_tokens.json", "[" * 10**5, "not valid JSON"),
        ("added_tokens.json", "[]", "expected a JSON object, found list"),
        ("added_tokens.json", '{"<pad>": "x"}', "token 'x' is '<pad>', expected an id and a text"),
        ("added_tokens.json", '{"<pad>": true}', "token True"),
        ("added_tokens.json", '{"<pad>": -1}', "token -1"),
        ("added_tokens.json", '{"\\ud800": 280}', "token 280"),
        ("tokenizer_config.json", '{"added_tokens_decoder": []}', None),
        ("tokenizer_config.json", '{"added_tokens_decoder": 5}', "added_tokens_decoder=5"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "y"}}}', "token 'x'"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"280": {}}}', "token 280 is None"),
        ("tokenizer_config.json", '{"bos_token": "<s>"}', None),
    ),
)
def test_files_of_another_form(folder, name, text, message):
    (folder / name).write_text(text)
    if message is None:
        assert Tokenizer.load(folder / "tokenizer.model").vocab_size == 280
        return
    with pytest.raises(TokenizerError) as error:
        Tokenizer.load(folder / "tokenizer.model")
    assert message in str(error.value) and str(folder / name) in str(error.value)


@pytest.mark.parametrize("name", ("added_tokens.json", "tokenizer_config.json"))
def test_a_page_in_place_of_a_file_of_the_folder(folder, name):
    (folder / name).write_text("<html>")
    with pytest.raises(TokenizerError, match=f"{name}: not a JSON file, but a web page"):
        Tokenizer.load(folder)


def test_with_a_byte_order_mark(folder):
    (folder / "added_tokens.json").write_bytes(b'\xef\xbb\xbf{"<pad>": 280}\r\n')
    assert Tokenizer.load(folder / "tokenizer.model").pieces[280] == b"<pad>"


def test_added_tokens_do_not_go_into_a_tokenizer_bin(folder):
    """It has the model's pieces: with more of them, models without those rows would not run."""
    from llama2np.formats.tokenizer_bin import write_bin

    write_bin(folder / "tokenizer.model", folder / "before.bin")
    (folder / "added_tokens.json").write_text('{"<pad>": 280}')
    write_bin(folder / "tokenizer.model", folder / "after.bin")
    assert (folder / "after.bin").read_bytes() == (folder / "before.bin").read_bytes()
