"""`llama2np lens`, `attend` and `perplexity`: what they print and draw, and how they say no."""

import json
import re
import sys

import numpy as np
import pytest
from conftest import TINY, parameters, write_tokenizer

from llama2np import Llama, Trace, Transformer, analysis, compare, evaluate
from llama2np.analysis import interactive
from llama2np.analysis.lens import best, labels, logit_lens, pieces_of, spans
from llama2np.cli import main
from llama2np.cli.lens import _fitted
from llama2np.formats import checkpoint
from llama2np.formats.checkpoint import Header
from llama2np.formats.llama2c import read_bin
from llama2np.formats.write import write_bin


@pytest.fixture
def tiny(write, tmp_path, monkeypatch):
    """A random model in the current folder: m.bin, and tokenizer.bin beside it."""
    write("m.bin", Header(1, TINY, True))
    write_tokenizer(tmp_path / "tokenizer.bin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def said(capfd):
    """said(*words) -> the standard output of a command that succeeds."""

    def said(*words) -> str:
        status = main([str(word) for word in words])
        out, err = capfd.readouterr()
        assert (status, err) == (0, "")
        return out

    return said


@pytest.fixture
def refused(capfd):
    """refused(*words) -> the one line with which a command says no."""

    def refused(*words) -> str:
        status = main([str(word) for word in words])
        out, err = capfd.readouterr()
        assert (status, out) == (1, "") and err.startswith(f"llama2np {words[0]}: ")
        assert err.count("\n") == 1 and err.endswith("\n")
        return err

    return refused


@pytest.fixture
def plot(drawing, monkeypatch):
    """The module that draws, and here in few pixels."""
    from llama2np.analysis import plot

    monkeypatch.setattr(plot, "_DPI", 20)
    return plot


# --- the logit lens ---


@pytest.mark.parametrize("version", (1, 2))
def test_the_last_of_the_lens_is_the_network_itself(write, version):
    header = Header(version, TINY, False, group_size=16 if version == 2 else 0)
    model = Llama(Transformer(*checkpoint.load(write("m.bin", header))), None)
    tokens = np.random.default_rng(0).integers(0, TINY.vocab_size, 40)
    found = list(logit_lens(model, tokens))
    assert len(found) == 1 + TINY.n_layers and found[0].shape == (40, TINY.vocab_size)
    expected = model.forward(tokens, model.new_state(), all_logits=True)
    np.testing.assert_array_equal(found[-1], expected)
    assert not np.allclose(found[-2], expected, atol=0.1)


def test_the_most_probable_token_and_its_probability():
    tokens, probability = best(np.log(np.float32([[1, 2, 1], [7, 1, 2]])))
    np.testing.assert_array_equal(tokens, [1, 0])
    np.testing.assert_allclose(probability, [0.5, 0.7], rtol=1e-6)


def test_the_table_of_the_lens(reference, said, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    folder = reference / "stories260K"
    text = "Once upon a time, there was a little girl named Lily"
    table = said(
        "lens", folder / "stories260K.bin", "-z", folder / "tok512.bin", "-i", text
    ).splitlines()
    assert max(map(len, table)) <= 100 and table.count("") == 2  # three panels
    assert table[0].split() == ["read", "<s>", "▁Once", "▁upon", "▁a", "▁time", ","]
    cells = re.findall(r"(\S+) +(\d\.\d\d)", table[6])  # after the last block
    assert [piece for piece, _ in cells][1:] == ["▁upon", "▁a", "▁time", ",", "▁there"]
    model = Llama.load(folder / "stories260K.bin", folder / "tok512.bin")
    tokens = model.tokenizer.encode(text)
    _, found = best(model.forward(tokens, model.new_state(), all_logits=True))
    np.testing.assert_allclose([float(p) for _, p in cells[1:]], found[1:6], atol=0.006)


def test_what_a_piece_looks_like(tiny):
    model = Llama.load("m.bin")
    model.tokenizer.pieces[5:9] = [b" a", b"\n", b"\x1b[1m", "é日".encode()]
    assert labels(model.tokenizer, [1, 2, 0, *range(4, 9)]) == [
        *("<s>", "</s>", "<unk>", "<0x01>", "▁a", "\\n", "\\x1b[1m", "é日")
    ]
    model.tokenizer.pieces[5] = b" \xe6\x97"
    assert labels(model.tokenizer, [5]) == ["▁\\xe6\\x97"]
    assert _fitted("日本語") == "日本語  " and _fitted("日本語日本語") == "日本語… "
    assert _fitted("a" * 8) == "a" * 8 and _fitted("a" * 9) == "a" * 7 + "…"


def test_characters_of_several_tokens(tiny):
    """They have one label; bytes that are no character keep their own."""
    model = Llama.load("m.bin")
    tokens = model.tokenizer.encode("A日é")
    found = spans(model.tokenizer, tokens)
    assert found == [("<s>", 1), ("▁", 1), ("A", 1), ("日", 3), ("é", 2)]
    assert pieces_of(found)[3:] == ["日 1/3", "日 2/3", "日 3/3", "é 1/2", "é 2/2"]
    alone = spans(model.tokenizer, [1, *tokens[3:5], tokens[2], tokens[6], *tokens[3:5]])
    assert alone == [(label, 1) for label in labels(model.tokenizer, [1, *tokens[3:5]])] + [
        *(("A", 1), ("<0xC3>", 1), ("<0xE6>", 1), ("<0x97>", 1))
    ]


def test_the_picture_of_the_lens(tiny, said, plot):
    assert said("lens", "m.bin", "-i", "ABC", "-o", "lens.svg") == "wrote lens.svg\n"
    assert b"<svg" in (tiny / "lens.svg").read_bytes()


# --- attention maps ---


@pytest.mark.parametrize(
    "flags, maps", ((("--layer", 2, "--head", 5), 1), (("--layer", 0), 6), (("--head", 1), 3))
)
def test_pictures_of_attention(tiny, said, plot, monkeypatch, flags, maps):
    drawn = []
    draw = plot.attention_maps
    monkeypatch.setattr(plot, "attention_maps", lambda *a, **b: drawn.append(a) or draw(*a, **b))
    assert said("attend", "m.bin", "-i", "ABCA", *flags) == "wrote attention.png\n"
    data = (tiny / "attention.png").read_bytes()
    assert data.startswith(b"\x89PNG") and not list(tiny.glob("*.part"))
    (weights, pieces, titles) = drawn[0]
    assert len(weights) == len(titles) == maps
    assert pieces == [(piece, 1) for piece in ("<s>", "▁", "A", "B", "C", "A")]
    for layer, head in (map(int, re.findall(r"\d+", title)) for title in titles):
        assert flags[1] in (layer, head)
        trace = Trace("attention")
        model = Llama.load("m.bin")
        model.with_hooks(trace).forward(model.tokenizer.encode("ABCA"), model.new_state())
        np.testing.assert_array_equal(weights.pop(0), trace["attention", layer][head])


def test_the_same_picture_is_the_same_file(tiny, said, plot):
    for name in ("one.png", "again.png"):
        said("attend", "m.bin", "-i", "ABCA", "--layer", 2, "--head", 5, "-o", name)
    assert (tiny / "one.png").read_bytes() == (tiny / "again.png").read_bytes()


def test_without_matplotlib(tiny, refused, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "llama2np.analysis.plot", raising=False)
    monkeypatch.delattr(analysis, "plot", raising=False)
    for words in (("attend", "m.bin", "-i", "A"), ("lens", "m.bin", "-i", "A", "-o", "a.png")):
        assert "-m pip install matplotlib" in refused(*words)
    assert not list(tiny.glob("*.png"))


@pytest.mark.parametrize(
    "words, match",
    (
        (("--layer", 3), "--layer: expected 0 to 2, found 3"),
        (("--head", 6), "--head: expected 0 to 5, found 6"),
        (("--head", -1), "--head: expected a whole number of 0 or more, found '-1'"),
        (
            ("-o", "map.jpg"),
            "map.jpg: the name of a picture must end in .html, .htm, .png, .svg",
        ),
        (("-i", "A" * 96), "the prompt has 98 tokens, the context holds 96"),
    ),
)
def test_what_cannot_be_drawn(tiny, refused, plot, words, match):
    assert match in refused("attend", "m.bin", "-i", "A", *words)
    assert not list(tiny.rglob("*.png*"))


@pytest.mark.parametrize("command", ("attend", "lens"))
@pytest.mark.parametrize("name", ("none/a.png", "none/a.html"))
def test_a_missing_folder_is_said_before_the_work(refused, plot, command, name):
    assert "none: no such folder" in refused(command, "no-model.bin", "-i", "A", "-o", name)


def test_what_a_map_shows(plot):
    """The half that is impossible is blank, the axes have titles, a character has one label."""
    weights = np.array([[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0]])
    figure = plot.attention_maps([weights], ["a", ("日", 2)], ["layer 0, head 0"])
    (axis,) = figure.axes
    drawn = axis.images[0].get_array()
    np.testing.assert_array_equal(drawn.mask, ~np.tri(3, dtype=bool))
    np.testing.assert_array_equal(drawn.compressed(), [1, 0.5, 0.5, 0, 1, 0])
    assert [text.get_text() for text in axis.get_yticklabels()] == ["a", "日"]
    assert axis.get_yticks().tolist() == [0, 1.5]
    assert (axis.get_ylabel(), axis.get_xlabel()) == ("token that looks", "token that is looked at")
    many = plot.attention_maps([weights] * 5, ["a", ("日", 2)], list("abcde"))
    assert many.get_supylabel() == "token that looks"
    table = plot.lens_table([["x"] * 3], np.ones((1, 3)), ["block 0"], ["a", ("日", 2)])
    assert table.axes[0].get_xticks().tolist() == [0, 1.5] and table.axes[0].get_ylabel()


# --- HTML ---


def data_of(path):
    """The data in a file that `lens` or `attend` has written."""
    return json.loads(re.search(r'id="data">(.*)</script>', path.read_text("utf-8"))[1])


def test_the_lens_as_html(tiny, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # it is not needed
    assert said("lens", "m.bin", "-i", "A日", "-o", "lens.html") == "wrote lens.html\n"
    model, found = Llama.load("m.bin"), data_of(tiny / "lens.html")
    tokens = model.tokenizer.encode("A日")
    assert found["spans"] == [["<s>", 1], ["▁", 1], ["A", 1], ["日", 3]]
    for row, logits in zip(found["rows"], logit_lens(model, tokens), strict=True):
        top, shares = best(logits)
        assert [cell[0][0] for cell in row] == labels(model.tokenizer, top)
        np.testing.assert_allclose([cell[0][1] for cell in row], shares, atol=1e-4)


def test_attention_as_html(tiny, said, refused, monkeypatch):
    said("attend", "m.bin", "-i", "ABCA", "--layer", 1, "-o", "maps.html")
    found, trace = data_of(tiny / "maps.html"), Trace("attention")
    model = Llama.load("m.bin")
    model.with_hooks(trace).forward(model.tokenizer.encode("ABCA"), model.new_state())
    assert found["columns"] == 6 and len(found["maps"]) == 6
    for head, drawn in enumerate(found["maps"]):
        assert drawn["title"] == f"layer 1, head {head}"
        for i, row in enumerate(drawn["weights"]):
            np.testing.assert_allclose(row, trace["attention", 1][head, i, : i + 1], atol=1e-4)
    monkeypatch.setattr(interactive, "MAX_WEIGHTS", 100)
    line = refused("attend", "m.bin", "-i", "ABCA", "-o", "large.html")
    assert "18 maps of 6 tokens have 378 weights, a file has at most 100" in line
    assert not (tiny / "large.html").exists()


def test_a_file_is_all_that_is_needed(tiny, said):
    """Nothing of another host, and no text ends the script or begins a tag."""
    (tiny / "t.txt").write_text("{{data}} </script><b> http://x \\u003c & 日")
    model = Llama.load("m.bin")
    tokens = model.tokenizer.encode((tiny / "t.txt").read_text())
    interactive.save_lens(tiny / "a.html", model, tokens)
    text = (tiny / "a.html").read_text("utf-8")
    assert text.count("<script") == text.count("</script>") == 2 and "<b>" not in text
    assert "{{data}} &lt;/script&gt;&lt;b&gt; http://x \\u003c &amp; 日" in text
    data_of(tiny / "a.html")
    rest = text.replace("http://x", "")
    assert not re.search(r"https?:|//[a-z]+\.|@import|src=|href=\"(?!data:)", rest)
    policy = re.search(r'Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'") and "script-src 'sha256-" in policy


TEX = {"text.usetex": True}


@pytest.mark.parametrize("settings", parameters([{}, TEX], [TEX]), ids=["plain", "usetex"])
def test_tokens_are_no_formulas(plot, tmp_path, settings):
    """Neither of matplotlib's own TeX nor, where a user has set it, of the real one."""
    import matplotlib
    from matplotlib.text import Text

    texts = ["$", "$a$", "$\\frac{", "\\$x_1$", "a\\b{", "$$", "^_{}%&#~"]
    with matplotlib.rc_context(settings):
        one = plot.attention_maps([np.eye(7)], texts, texts[:1])
        many = plot.attention_maps([np.eye(7)] * 7, texts, texts)  # these have no labels
        table = plot.lens_table([texts], np.eye(7)[:1], texts[:1], texts)
        for figure, count in ((one, 15), (many, 7), (table, 15)):
            plot.save(figure, tmp_path / "x.svg")
            shown = [t for t in figure.findobj(Text) if t.get_text() in texts]
            assert len(shown) >= count and {t.get_text() for t in shown} == {*texts}
            assert not any(t.get_parse_math() or t.get_usetex() for t in shown)


def test_too_many_maps(write, tiny, refused, plot):
    from dataclasses import replace

    write("deep.bin", Header(1, replace(TINY, n_layers=11), True))
    assert "66 maps are too many" in refused("attend", "deep.bin", "-i", "A")


# --- perplexity ---


def numbers(table: str, name: str) -> list[float]:
    line = next(line for line in table.splitlines() if line.startswith(name))
    return [float(number) for number in re.findall(r" ([\d.]+)", line)]


def test_perplexity(tiny, said):
    (tiny / "t.txt").write_bytes("ABC CBA\r\nÄ ".encode() * 9)
    model = Llama.load("m.bin")
    text = "ABC CBA\nÄ " * 9  # lines end in "\n" for the model, and so they are counted
    for flags, options in (
        ((), {}),
        (("--context", 40, "--stride", 9), dict(context=40, stride=9)),
    ):
        table, found = said("perplexity", "m.bin", "--file", "t.txt", *flags), None
        found = evaluate(model, text, **options)
        context, stride = options.get("context", 96), options.get("stride", 48)
        size = f"t.txt: 99 bytes, {found.tokens:,} tokens, windows of {context}, {stride} apart\n"
        assert table.startswith(size)
        assert numbers(table, "nats per token") == [pytest.approx(found.nats_per_token, abs=6e-5)]
        assert numbers(table, "perplexity") == [pytest.approx(found.perplexity, abs=6e-5)]
        assert numbers(table, "bits per byte") == [pytest.approx(found.bits_per_byte, abs=6e-5)]


def test_two_models_side_by_side(tiny, said):
    write_bin(read_bin("m.bin"), "q8.bin", 2)
    text = "ABC CBA AAA BB " * 3
    (tiny / "t.txt").write_text(text)
    table = said("perplexity", "q8.bin", "--against", "m.bin", "--file", "t.txt")
    found = compare(Llama.load("q8.bin"), Llama.load("m.bin"), text)
    expected = [found.model.perplexity, found.against.perplexity]
    assert numbers(table, "perplexity") == pytest.approx(expected, abs=6e-5)
    assert expected[0] != pytest.approx(expected[1], abs=1e-3)
    assert f"of q8.bin from m.bin: {found.divergence:.3g} nats per token\n" in table
    assert table.endswith(f"the same most probable token: {found.agreement:.2%}\n")


@pytest.mark.compiled
def test_what_rounding_costs_the_model_in_the_box(tiny, said):
    """Both by their names; without one it is the float32 model."""
    (tiny / "t.txt").write_text(
        "Once upon a time, there was a little girl named Lily. She was sad."
    )
    table = said("perplexity", "stories-box-q8", "--against", "stories-box", "--file", "t.txt")
    exact, alone = numbers(table, "perplexity")[1], said("perplexity", "--file", "t.txt")
    assert exact < 100 and numbers(alone, "perplexity") == [exact]


@pytest.mark.parametrize(
    "data, words, match",
    (
        (None, (), "t.txt: No such file"),
        (b"", (), "there is no text"),
        (b"A" * 70000 + b"\xc3A", (), "t.txt: expected UTF-8, found byte 0xc3 at byte 70000"),
        (b"A" * 65535 + b"\xc3(", (), "t.txt: expected UTF-8, found byte 0xc3 at byte 65535"),
        (b"A \xe2\x82", (), "t.txt: expected UTF-8, found byte 0xe2 at byte 2"),
        (b"A", ("--context", 97), "context must be 1 to 96, the model's, not 97"),
        (b"A", ("--stride", 0), "--stride: expected a whole number of 1 or more, found '0'"),
        (b"A", ("--against", "none.bin"), "none.bin: No such file"),
        (b"A", ("--against", "stories-box"), "the models have different vocabularies"),
    ),
)
def test_what_cannot_be_measured(tiny, refused, data, words, match):
    if data is not None:
        (tiny / "t.txt").write_bytes(data)
    assert match in refused("perplexity", "m.bin", "--file", "t.txt", *words)
