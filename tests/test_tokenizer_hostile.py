"""Tokenizers that would take all memory, or be run as what they are not; tokens out of range."""

import tracemalloc

import numpy as np
import pytest
import sentencepiece

from llama2np.text.tokenizer import Decoder, Tokenizer, TokenizerError


def test_a_model_given_for_a_tokenizer(tmp_path):
    with open(tmp_path / "model.bin", "wb") as file:
        file.truncate(2**36)
    tracemalloc.start()
    try:
        with pytest.raises(TokenizerError, match="not a tokenizer: it has 68,719,476,736 bytes"):
            Tokenizer.load(tmp_path / "model.bin")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("algorithm", ("unigram", "char", "word", "bpe"))
def test_only_byte_pairs_are_encoded(tmp_path, algorithm):
    """The other algorithms would be run as if they were BPE, and give other tokens in silence."""
    with open(tmp_path / "x.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the cat sat on the mat, and the other cat ate it"]),
            model_writer=file,
            model_type=algorithm,
            vocab_size=25,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    if algorithm == "bpe":
        assert Tokenizer.load(tmp_path / "x.model").vocab_size == 25
        return
    with pytest.raises(TokenizerError, match=f"algorithm is {algorithm.title()}, expected BPE"):
        Tokenizer.load(tmp_path / "x.model")


def piece(text):
    """A control piece."""
    return b"\x0a" + bytes([len(text) + 4]) + b"\x0a" + bytes([len(text)]) + text + b"\x18\3"


@pytest.mark.parametrize(
    "fields, match",
    (
        (b"\x0a\3\x0a\1a", "algorithm is Unigram"),  # the format's default
        (b"\x12\2\x18\x09", "algorithm is 9|not a sentencepiece model"),
        (b"\x12\4\x18\1\x18\2", None),  # the last one counts
        (b"\x12\x07\x19" + bytes(6), "sentencepiece model"),
    ),
)
def test_the_algorithm_is_read_as_protobuf_says(tmp_path, fields, match):
    data = b"\x0a\x09\x0a\5<unk>\x18\2"  # and 2 is the kind of an unknown piece
    (tmp_path / "x.model").write_bytes(data + piece(b"<s>") + piece(b"</s>") + fields)
    if match is None:
        assert Tokenizer.load(tmp_path / "x.model").vocab_size == 3
        return
    with pytest.raises(TokenizerError, match=match):
        Tokenizer.load(tmp_path / "x.model")


@pytest.mark.parametrize("token", (-1, -300, 5, 2**40))
def test_tokens_that_the_vocabulary_has_not(token):
    tokenizer = Tokenizer([b"<unk>", b"<s>", b"</s>", b"a", b"b"], [0] * 5)
    with pytest.raises(ValueError, match=f"token {token} is not in the vocabulary of 0 to 4"):
        Decoder(tokenizer).feed(token)
    with pytest.raises(ValueError, match="not in the vocabulary"):
        tokenizer.decode([3, token])
    assert tokenizer.decode([np.int64(3), 4]) == "ab"
