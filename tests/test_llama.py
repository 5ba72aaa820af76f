"""The library: loading, generating, stopping."""

import re
import struct

import pytest
from conftest import TINY, letters, scripted, write_tokenizer

from llama2np import CheckpointError, Llama, Tokenizer, TokenizerError, export
from llama2np.decoding.transcript import until
from llama2np.formats.checkpoint import Header
from llama2np.text.tokenizer import BOS, EOS
from tools.hostile import valid


def test_same_seed_same_text(model):
    def text(**options):
        return "".join(model.generate("AB", max_new_tokens=30, **options))

    assert text(seed=7) == text(seed=7) != text(seed=8)
    assert text(temperature=0) == text(temperature=0, seed=5)


def test_one_piece_for_each_token(model, monkeypatch):
    scripted(model, monkeypatch, [*letters("AB"), 3 + 0xC3, 3 + 0xA9, *letters("C")])
    pieces = list(model.generate("X", max_new_tokens=5, temperature=0))
    assert pieces == ["A", "B", "", "é", "C"]


@pytest.mark.parametrize("end", (BOS, EOS))
def test_it_stops_where_a_story_ends(model, monkeypatch, end):
    scripted(model, monkeypatch, [*letters("AB"), end, *letters("C")])
    assert "".join(model.generate("X", temperature=0)) == "AB"


def test_bytes_left_over_at_the_end_are_not_lost(model, monkeypatch):
    scripted(model, monkeypatch, [*letters("A"), 3 + 0xC3, EOS])
    assert "".join(model.generate("X", temperature=0)) == "A\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    "stop, expected", (("CD", "AB"), (["E", "BC"], "A"), ("ABCDEF", ""), ("", "ABCDEF"), ((), None))
)
def test_stop_strings(model, monkeypatch, stop, expected):
    scripted(model, monkeypatch, [*letters("ABCDEF"), EOS])
    expected = "ABCDEF" if expected is None else expected
    assert "".join(model.generate("X", temperature=0, stop=stop)) == expected


def test_stop_holds_back_no_more_than_it_must():
    assert list(until(["a", "b", "x", "cd"], ["bcd"])) == ["a", "", "bx", "cd"]
    assert list(until(["x", "b", "cd", "e"], ["bcd"])) == ["x", "", ""]


def test_lengths(model):
    def count(prompt, **options):
        pieces = model.generate(prompt, temperature=0, **options)
        return len(list(pieces))

    assert count("AB", max_new_tokens=0) == 0
    assert count("AB", max_new_tokens=5) <= 5
    full = "A" * (TINY.seq_len - 2)  # and BOS, and the leading space: the context is full
    assert count(full, max_new_tokens=9) <= 1
    with pytest.raises(ValueError, match="the prompt has 97 tokens, the context holds 96"):
        model.generate(full + "A")


@pytest.mark.parametrize(
    "options, message",
    (
        ({"temperature": -1}, "temperature must be 0, or 1e-30 to 1e30, not -1"),
        ({"top_p": 2}, "top_p must be 0 to 1, not 2"),
        ({"max_new_tokens": -1}, "max_new_tokens must be 0 or more, not -1"),
        ({"seed": 2**64}, "seed must fit into 64 bits"),
    ),
)
def test_arguments_are_checked_at_the_call(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate("A", **options)  # not first when somebody iterates


def test_options_that_there_are_not(model):
    with pytest.raises(TypeError, match=r"generate\(\) has no option 'max_tokens'; those of sampl"):
        model.generate("A", max_tokens=5)
    with pytest.raises(TypeError, match=r"chat\(\) has no option 'temp'"):
        model.chat(temp=5)
    with pytest.raises(ValueError, match="draft must be a function of the tokens, not Llama"):
        model.generate("A", draft=model)


def test_broken_weights_stop_with_a_message(write, tmp_path):
    path = write("nan.bin", Header(1, TINY, True))
    data = bytearray(path.read_bytes())
    data[256 + 4 * 3 : 256 + 4 * 4] = struct.pack("<f", float("nan"))
    path.write_bytes(data)
    model = Llama.load(path, write_tokenizer(tmp_path / "t.bin"))
    for temperature in (0, 1):
        with pytest.raises(ValueError, match="not finite"):
            list(model.generate("A", temperature=temperature))


def test_where_the_tokenizer_is_found(write, tmp_path, monkeypatch):
    beside, current = tmp_path / "beside", tmp_path / "current"
    beside.mkdir(), current.mkdir()
    path = write("tiny.bin", Header(0, TINY, True)).rename(beside / "tiny.bin")
    monkeypatch.chdir(current)
    with pytest.raises(TokenizerError, match=re.escape(f"nor in {beside}")):
        Llama.load(path)

    def is_found(tokenizer, *named):
        pieces = Tokenizer.load(tokenizer).pieces
        return [piece for piece in Llama.load(path, *named).tokenizer.pieces if piece] == pieces

    here = write_tokenizer(current / "tokenizer.bin", 290)
    assert is_found(here)  # run.c's rule, where there is none beside the model
    (beside / "tokenizer.model").write_bytes(valid("tokenizer.model")[0]["tokenizer.model"])
    assert is_found(beside / "tokenizer.model")
    there = write_tokenizer(beside / "tokenizer.bin")
    assert is_found(there)
    assert is_found(here, here) and is_found(here, "tokenizer.bin")  # what is named is taken
    write_tokenizer(there, 301)  # and not passed over for one that would fit
    with pytest.raises(TokenizerError, match="holds 301 pieces, the model's vocabulary is 300"):
        Llama.load(path)
    there.unlink(), (beside / "tokenizer.model").unlink()
    there.mkdir()
    assert is_found(here)


def test_the_tokenizer_of_a_model_that_is_named_by_a_link(write, tmp_path, monkeypatch):
    home, links = tmp_path / "home", tmp_path / "links"
    home.mkdir(), links.mkdir()
    path = write("tiny.bin", Header(0, TINY, True)).rename(home / "tiny.bin")
    (links / "story.bin").symlink_to(path)
    write_tokenizer(home / "tokenizer.bin")

    def found(name):
        return sum(map(bool, Llama.load(name).tokenizer.pieces))

    assert found(links / "story.bin") == 300
    monkeypatch.chdir(links)
    write_tokenizer(links / "tokenizer.bin", 290)  # run.c's rule comes last
    assert found("story.bin") == found(links / "story.bin") == 300
    monkeypatch.chdir(home)
    assert found(links / "story.bin") == 290  # as in Hugging Face's cache, where all are links


def test_model_and_tokenizer_taken_for_each_other(write, tmp_path):
    path, tokenizer = write("m.bin", Header(0, TINY, True)), write_tokenizer(tmp_path / "t.bin")
    with pytest.raises(CheckpointError, match="t.bin"):
        Llama.load(tokenizer, path)
    with pytest.raises(TokenizerError, match="m.bin: not a tokenizer.json, tokenizer.bin or"):
        Tokenizer.load(path)


@pytest.mark.parametrize("version", (0, 1, 2))
def test_export_is_the_command(write, tmp_path, version):
    from llama2np.cli.export import main

    path = write("tiny.bin", Header(1, TINY, False))
    export(path, tmp_path / "a.bin", version)
    assert main([str(tmp_path / "b.bin"), "--bin", str(path), "--version", str(version)], "x") == 0
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()


def test_export_to_hugging_face_and_back(write, tmp_path):
    path, done = write("tiny.bin", Header(1, TINY, False)), []
    export(path, tmp_path / "folder", -1, dtype="float32", progress=done.append)
    export(tmp_path / "folder", tmp_path / "again.bin", 1, seq_len=TINY.seq_len)
    assert (tmp_path / "again.bin").read_bytes() == path.read_bytes()
    assert sum(done) * 4 + 256 == path.stat().st_size


def test_export_refuses(write, tmp_path):
    path = write("tiny.bin", Header(1, TINY, False))
    with pytest.raises(ValueError, match="version must be -1, 0, 1, 2 or 'gguf', not 3"):
        export(path, tmp_path / "x.bin", 3)
    with pytest.raises(ValueError, match="dtype float16 needs version -1"):
        export(path, tmp_path / "x.bin", 1, dtype="float16")
    export(path, tmp_path / "folder", -1)
    with pytest.raises(CheckpointError, match="safetensors file, without the config of a network"):
        export(tmp_path / "folder" / "model.safetensors", tmp_path / "x.bin")
    assert not (tmp_path / "x.bin").exists()
