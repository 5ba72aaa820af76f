"""Labelled files, and their tokens in batches."""

import json
import tracemalloc

import numpy as np
import pytest

from llama2np.learning.examples import Examples, Labelled

LINES = "good ||| A fine film .\n\nbad ||| No ||| never .\n good|||Nice\n"


@pytest.mark.parametrize(
    "name, content",
    (
        ("a.txt", LINES),
        ("a.csv", 'id,label,text\n1,good,A fine film .\n2,bad,"No ||| never ."\n3,good,Nice\n'),
        ("a.jsonl", "".join(json.dumps(dict(label=n, sentence=t)) + "\n" for n, t in (
            ("good", "A fine film ."), ("bad", "No ||| never ."), ("good", "Nice")))),
    ),
)  # fmt: skip
def test_examples(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    found = Examples.read(tmp_path / name)
    assert list(found.texts) == ["A fine film .", "No ||| never .", "Nice"]
    assert found.names == ("bad", "good") and found.labels.tolist() == [1, 0, 1]
    known = Examples.read(tmp_path / name, ("good", "fair", "bad"))
    assert known.labels.tolist() == [0, 2, 0]


def test_labels_that_are_numbers(tmp_path):
    (tmp_path / "a.txt").write_text("10 ||| a\n2 ||| b\n")
    assert Examples.read(tmp_path / "a.txt").names == ("2", "10")
    (tmp_path / "a.txt").write_text("1 ||| a\n0 ||| b\n")
    found = Examples.read(tmp_path / "a.txt", ("bad", "good"))
    assert found.names == ("bad", "good") and found.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    "name, content, words",
    (
        ("a.txt", b"", "no examples, expected lines of `label ||| sentence`"),
        ("a.txt", b"good ||| x\nno label here\n", "line 2: expected `label ||| sentence`"),
        ("a.txt", b"good ||| x\nugly ||| y\n", "line 2: label 'ugly', expected one of good, bad"),
        ("a.txt", b"good ||| \xff\n", "expected UTF-8"),
        ("a.csv", b"a,b\n1,2\n", "columns a, b, expected text and label"),
        ("a.csv", b"text,label\nx,\n", "line 2: expected a text and a label"),
        ("a.jsonl", b'{"text": "x"}\n', 'line 1: expected {"text": ..., "label": ...}'),
        ("a.jsonl", b"[" * 100_000 + b"\n", "line 1: expected"),
        ("a.jsonl", b'{"text": "x", "label": [1]}\n', "line 1: expected"),
        ("a.txt", b"good ||| \xe2\x82", "expected UTF-8, found byte 0xe2 in line 1"),
        ("a.txt", b"\n ||| no label\n", "line 2: expected `label ||| sentence`"),
        ("a.txt", b"good ||| x\nbad ||| " + b"y" * 2**22, "line 2: longer than 4,194,304 bytes"),
        ("a.csv", b"", "no examples, expected lines of `label ||| sentence`"),
        ("a.csv", b"text,label\n", "no examples, expected lines of `label ||| sentence`"),
        ("a.csv", b"text,label\nx\n", "line 2: expected a text and a label"),
        ("a.csv", b"text,label\nx,good\n" + b"y" * 140_000, "after line 2: field larger than"),
        ("a.csv", b'text,label\n"' + b"y\n" * 99_999, "field larger than field limit"),
    ),
)
def test_wrong_examples(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        Examples.read(tmp_path / name, ("good", "bad"))
    assert words in str(error.value) and str(tmp_path / name) in str(error.value)


def test_too_many_labels(tmp_path):
    """As if texts and labels were exchanged: the set of labels must not grow with the file."""
    path = tmp_path / "a.txt"
    path.write_text("".join(f"text {i} ||| good\n" for i in range(10_001)))
    with pytest.raises(ValueError, match="line 10001: more than 10,000 different labels"):
        Examples.read(path)


def test_a_changed_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(LINES)
    texts = iter(Examples.read(path).texts)
    assert next(texts) == "A fine film ."
    path.write_text(f"{LINES}bad ||| One more\n")
    with pytest.raises(ValueError, match="a.txt: it was changed while it was being read"):
        list(texts)


@pytest.mark.parametrize("name", ("a.txt", "a.csv", "a.jsonl"))
def test_a_file_larger_than_the_memory(tmp_path, name):
    """4 MB of texts and 2.5 MB of tokens, but never more than half a MB of memory for them."""
    line = {
        "a.txt": "good ||| {}\n", "a.csv": "{},good\n", "a.jsonl": '{{"text": "{}", "label": 1}}\n'
    }[name]  # fmt: skip
    text = line.format("A fine film . " * 290)
    (tmp_path / name).write_text("text,label\n" * (name == "a.csv") + text * 1000)
    tracemalloc.start()
    try:
        examples = Examples.read(tmp_path / name, ("bad", "good"))
        data = Labelled(examples, lambda t: [7] * 620, 2, 1024, path=tmp_path / "tokens.bin")
        assert data.batch(750).tokens.shape == (2, 620)
        assert tracemalloc.get_traced_memory()[1] < 2**19
    finally:
        tracemalloc.stop()
    assert len(examples) == 1000 and (tmp_path / "tokens.bin").stat().st_size == 1000 * 620 * 4


def test_tokens_in_a_file_are_those_in_memory(tmp_path, labelled):
    examples = Examples.read(labelled)
    found = [
        Labelled(examples, lambda text: [1, *text.encode()], 4, 9, 3, path)
        for path in (None, tmp_path / "tokens.bin")
    ]
    assert found[0].name == found[1].name
    for number in range(9):
        np.testing.assert_array_equal(*(data.batch(number).tokens for data in found))
    with pytest.raises(ValueError, match="text 1 has no tokens"):
        Labelled(examples, lambda text: [], 4, 9, 3, tmp_path / "tokens.bin")
    assert (tmp_path / "tokens.bin").stat().st_size > 0  # the old one


def test_epochs():
    random = np.random.default_rng(0)
    texts = ["x" * n for n in random.integers(1, 30, 45)]
    labels = np.arange(45) % 3
    data = Labelled(Examples(texts, labels, ("a", "b", "c")), lambda t: [1, *t.encode()], 8, 20, 5)
    assert data.per_epoch == 6
    orders = []
    for epoch in range(2):
        batches = [data.batch(epoch * 6 + i) for i in range(6)]
        assert sum(len(batch.targets) for batch in batches) == 45
        assert max(batch.shape[1] for batch in batches) == 20
        lengths = np.concatenate([batch.lengths for batch in batches])
        assert sorted(lengths) == sorted(min(len(t) + 1, 20) for t in texts)
        assert all(np.ptp(batch.lengths) < 8 for batch in batches)
        orders.append(lengths.tolist())
    assert orders[0] != orders[1]
    again = Labelled(Examples(texts, labels, ("a", "b", "c")), lambda t: [1, *t.encode()], 8, 20, 5)
    np.testing.assert_array_equal(again.batch(7).tokens, data.batch(7).tokens)
    every = np.concatenate([batch.targets for batch in data.all()])
    np.testing.assert_array_equal(every, labels)
