"""The documentation's examples run: docs/api.md as doctests, docs/recipes.md as scripts."""

import doctest
import re
from pathlib import Path

import pytest

from llama2np import export

DOCS = Path(__file__).parents[1] / "docs"
SCRIPTS = re.findall(
    r"^## (.+?)\n.*?^```python\n(.*?)^```",
    (DOCS / "recipes.md").read_text(),
    re.DOTALL | re.MULTILINE,
)


@pytest.fixture
def folder(reference, tmp_path, monkeypatch):
    """What the examples find: the smallest public model, under the names they use."""
    small = reference / "stories260K"
    (tmp_path / "stories15M.bin").symlink_to(small / "stories260K.bin")
    (tmp_path / "tokenizer.bin").symlink_to(small / "tok512.bin")
    export(small / "stories260K.bin", tmp_path / "stories15M_q8.bin", 2)
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "7B").symlink_to(reference / "meta_gqa_2shards_fp16")
    monkeypatch.chdir(tmp_path)


def test_api(folder):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    text = (DOCS / "api.md").read_text()
    test = doctest.DocTestParser().get_doctest(text, {}, "api.md", "docs/api.md", 0)
    assert len(test.examples) > 40
    report = []
    doctest.DocTestRunner(optionflags=flags, verbose=False).run(test, out=report.append)
    assert not report, "".join(report)


def test_every_public_name_is_on_the_page():
    import llama2np

    text = (DOCS / "api.md").read_text()
    assert not [name for name in llama2np.__all__ if not re.search(rf"\b{name}\b", text)]


@pytest.mark.parametrize("title, script", SCRIPTS, ids=[title for title, _ in SCRIPTS])
def test_recipe(folder, capsys, title, script):
    assert len(script.splitlines()) <= 15
    exec(compile(script, title, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()
