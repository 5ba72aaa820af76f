"""Text that other systems wrote: a byte order mark before it, and lines that end in CRLF."""

import io
import sys

import pytest
from conftest import TINY, write_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from llama2np.cli.lens import main as lens
from llama2np.cli.perplexity import main as perplexity
from llama2np.cli.run import main as run
from llama2np.cli.text import plain, plain_line
from llama2np.formats.checkpoint import Header
from llama2np.jsonl import lines, parsed
from llama2np.learning import lines as learning_lines
from llama2np.learning.corpus import texts

BOM = "\ufeff"


@given(st.text("a\r\n\ufeff", max_size=12), st.lists(st.integers(0, 12)))
def test_a_text_in_pieces_is_the_text_whole(text, cuts):
    cuts = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    expected = text.removeprefix(BOM).replace("\r\n", "\n")
    assert "".join(plain(pieces)) == "".join(plain([text])) == expected


@pytest.mark.parametrize(
    "line, expected",
    (
        ("a", "a"),
        ("a\r", "a"),
        (BOM + "a\r", "a"),
        ("a\rb", "a\rb"),
        ("a" + BOM, "a" + BOM),
        ("", ""),
    ),
)
def test_a_line(line, expected):
    assert plain_line(line) == expected


def test_prompts_and_training_texts_of_windows(tmp_path):
    """The files of `generate`, and those of `train`."""
    path = tmp_path / "x"
    path.write_bytes(f'{BOM}"a"\r\n"b"\r\n'.encode())
    assert [parsed(line) for _, line in lines(path)] == ["a", "b"]
    path.write_bytes(f"{BOM}One\r\ntwo\rx.\r\n<|endoftext|>\r\nThree\r\n".encode())
    assert list(texts([path])) == ["One\ntwo\rx.", "Three"]


def test_a_crlf_at_the_end_of_a_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(learning_lines, "LONGEST", 4)
    (tmp_path / "x").write_bytes(b"abc\r\nabc\rd\r\n")
    found = [text for _, text in learning_lines.pieces(tmp_path / "x")]
    assert found == ["abc\n", "abc\rd", "\n"]


def test_the_place_of_a_wrong_byte_after_a_byte_order_mark():
    with pytest.raises(ValueError, match="found byte 0xff at byte 1"):
        parsed(BOM.encode() + b'"\xffabc"')


@pytest.fixture
def said(write, tmp_path, capsys, monkeypatch):
    """said(command, argv, data) -> what it prints for standard input or a file of these bytes."""
    write_tokenizer(tmp_path / "tokenizer.bin")
    model = write("m.bin", Header(1, TINY, True))

    def said(command, argv, text):
        data = text.encode()
        (tmp_path / "text").write_bytes(data)
        # As Python opens it on Linux, where "\r" stays.
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8", newline="\n"))
        argv = [str(tmp_path / word) if word == "text" else word for word in argv]
        assert command([str(model), *argv], "prog") == 0
        return capsys.readouterr().out

    return said


@pytest.mark.parametrize(
    "command, argv",
    (
        (run, ["-i", "-", "-t", "0", "-n", "30"]),
        (run, ["-m", "chat", "-y", "", "-t", "0", "-n", "90"]),
        (run, ["-m", "chat", "-t", "0", "-n", "90"]),  # the system prompt is a line, too
        (run, ["-m", "chat", "-y", "", "-i", "-", "-t", "0", "-n", "90"]),
        (perplexity, ["--file", "text"]),
        (lens, ["-i", "-"]),
    ),
    ids=("prompt", "chat", "system", "first turn", "perplexity", "lens"),
)
def test_every_reader_of_text(said, command, argv):
    expected = said(command, argv, "AB\nCD\n")
    for text in ("AB\r\nCD\r\n", BOM + "AB\nCD\n", BOM + "AB\r\nCD\r\n"):
        assert said(command, argv, text) == expected


def test_a_file_of_a_byte_order_mark_alone(said, tmp_path, capsys):
    with pytest.raises(AssertionError):
        said(perplexity, ["--file", "text"], BOM)
    assert "there is no text to measure" in capsys.readouterr().err
