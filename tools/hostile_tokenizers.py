"""Tokenizers of Hugging Face folders, for hostile.py: valid ones, and the use of damaged ones."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from llama2np.text.byte_letters import LETTERS
from llama2np.text.tokenizer import Tokenizer

_TEXTS = ("", "AB abc", "naïve 日本 \0 <0x41>", "<|end|> a  b's 12", " [MASK] ")
_TEMPLATE = (
    "{% for m in messages %}{{ bos_token }}{{ m['role'] ~ ': ' ~ m.content | trim }}"
    "{% if loop.last %}{{ eos_token }}{% endif %}{% endfor %}"
)


def exercise(folder: Path) -> None:
    """Load the tokenizer in a folder and use it."""
    tokenizer = Tokenizer.load(folder)
    for text in _TEXTS:
        try:
            tokens, _ = tokenizer.encode_pair(text, text)
            tokens += tokenizer.encode(text, eos=True, special=False)
        except ValueError as error:  # a pattern that takes too long
            if "takes too long" not in str(error):
                raise
            continue
        known = [token for token in tokens if token < tokenizer.vocab_size]
        tokenizer.decode(known, skip_special=True)
    tokenizer.decode(range(tokenizer.vocab_size))
    if tokenizer.chat_template is not None:
        try:
            tokenizer.apply_chat_template([{"role": "user", "content": "a"}])
        except ValueError as error:
            if not str(error).isprintable():
                raise AssertionError(f"it says {error!r}") from error


@cache
def folders() -> list[dict[str, bytes]]:
    """Small valid folders: byte-level BPE, sentencepiece's BPE, WordPiece; two without .json."""
    letters = {letter: i for i, letter in enumerate(LETTERS)}
    merges = [["a", "b"], ["Ġ", "a"]]
    vocab = letters | {"ab": 256, "Ġa": 257}
    end = {"id": 258, "content": "<|end|>", "special": True, "normalized": False, "rstrip": True}
    split = {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}| ?\p{L}+|\s+(?!\S)"}}
    bpe = {
        "added_tokens": [end],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                split | {"behavior": "Isolated"},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "E", "type_id": 0}}, {"Sequence": {"id": "A"}}],
            "pair": [{"Sequence": {"id": "A"}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"E": {"id": "E", "ids": [258], "tokens": ["<|end|>"]}},
        },
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }
    config = {
        "bos_token": "<|end|>",
        "eos_token": {"content": "<|end|>"},
        "chat_template": _TEMPLATE,
        "added_tokens_decoder": {"258": {"content": "<|end|>", "special": True}},
    }
    settings = {
        "tokenizer_config.json": _json(config),
        "generation_config.json": _json({"eos_token_id": [258, 1]}),
    }
    texts = {
        "vocab.json": _json(vocab),
        "merges.txt": "#version: 0.2\na b\nĠ a\n".encode(),
    }
    return [
        {"tokenizer.json": _json(bpe)} | settings,
        {"tokenizer.json": _json(_sentencepiece())},
        {"tokenizer.json": _json(_word_piece())},
        texts | settings,
        {"vocab.txt": "\n".join(_word_piece()["model"]["vocab"]).encode()},
    ]


def _sentencepiece() -> dict:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁ab", "ab"]
    space = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    return {
        "added_tokens": [{"id": i, "content": pieces[i], "special": True} for i in range(3)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                space,
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "byte_fallback": True,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": ["a b"],
        },
    }


def _word_piece() -> dict:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "ab", "12", "naive"]
    return {
        "added_tokens": [{"id": i, "content": pieces[i], "special": True} for i in range(5)],
        "normalizer": {"type": "BertNormalizer", "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": {"type": "WordPiece", "prefix": "##"},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "vocab": {piece: i for i, piece in enumerate(pieces)},
        },
    }


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
