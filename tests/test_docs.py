"""The documentation's examples run: those of most pages as doctests, docs/recipes.md as scripts."""

import doctest
import re
from pathlib import Path

import pytest
from conftest import write_chat_folder
from random_folders import write_bert, write_gpt2

from llama2np.cli.run import main as run
from llama2np.model.config import Config
from tools.hostile import valid, write_case

DOCS = Path(__file__).parents[1] / "docs"
SCRIPTS = re.findall(
    r"^## (.+?)\n.*?^```python\n(.*?)^```",
    (DOCS / "recipes.md").read_text(),
    re.DOTALL | re.MULTILINE,
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files that the examples need besides the bundled models: a folder in Meta's format."""
    (tmp_path / "path" / "to" / "7B").mkdir(parents=True)
    write_case(valid("meta")[0], tmp_path / "path" / "to" / "7B")
    monkeypatch.chdir(tmp_path)


def run_examples(text: str, name: str) -> int:
    """Run them as doctests; return how many there were."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    test = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
    report = []
    doctest.DocTestRunner(optionflags=flags, verbose=False).run(test, out=report.append)
    assert not report, "".join(report)
    return len(test.examples)


@pytest.mark.compiled
def test_api(folder):
    assert run_examples((DOCS / "api.md").read_text(), "api.md") > 40


@pytest.mark.compiled
def test_how_it_works(folder):
    assert run_examples((DOCS / "how_it_works.md").read_text(), "how_it_works.md") >= 5


@pytest.mark.compiled
def test_learning(folder):
    assert run_examples((DOCS / "learning.md").read_text(), "learning.md") >= 5


@pytest.mark.compiled
def test_contributing(folder):
    text = (DOCS.parent / "CONTRIBUTING.md").read_text()
    assert run_examples(text, "CONTRIBUTING.md") >= 5


@pytest.mark.compiled
def test_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (DOCS.parent / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert run_examples("\n".join(blocks), "README.md") > 10


@pytest.mark.compiled
def test_the_story_of_the_first_screen(capsys):
    """README shows what `make run` prints."""
    text, flags = (DOCS.parent / "README.md").read_text(), ["-t", "0.8", "-s", "42"]
    assert f"ARGS ?= {' '.join(flags)}\n" in (DOCS.parent / "Makefile").read_text()
    assert run(["stories-box", *flags], prog="run.py") == 0
    story = capsys.readouterr().out
    assert f"# ./run.py stories-box {' '.join(flags)}\n{story}" in text


def test_every_public_name_is_on_the_page():
    import llama2np

    text = (DOCS / "api.md").read_text()
    assert not [name for name in llama2np.__all__ if not re.search(rf"\b{name}\b", text)]


@pytest.mark.compiled
@pytest.mark.parametrize("title, script", SCRIPTS, ids=[title for title, _ in SCRIPTS])
def test_recipe(tmp_path, monkeypatch, capsys, title, script, request):
    monkeypatch.chdir(tmp_path)
    if "path/to/folder" in script:  # of a model that chats: its answers end soon, by chance
        (tmp_path / "path" / "to").mkdir(parents=True)
        config = Config(32, 48, 2, 4, 2, vocab_size=640, seq_len=2048)
        tokenizer = request.getfixturevalue("reference") / "tokenizers" / "qwen2"
        ends = [569, *range(0, 560, 9)]
        write_chat_folder(tmp_path / "path/to/folder", config, tokenizer, ends)
    for name, write in (("gpt2", write_gpt2), ("bert-base-uncased", write_bert)):
        if f"path/to/{name}" in script:
            tokenizer = "gpt2" if write is write_gpt2 else "bert_uncased"
            (tmp_path / "path" / "to").mkdir(parents=True)
            folder = request.getfixturevalue("reference") / "tokenizers" / tokenizer
            write(tmp_path / "path" / "to" / name, folder)
    assert len(script.splitlines()) <= 15
    exec(compile(script, title, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()
