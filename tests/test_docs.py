"""The documentation's examples run: docs/api.md as doctests, docs/recipes.md as scripts."""

import doctest
import re
from pathlib import Path

import pytest

from llama2np import Llama, export

DOCS = Path(__file__).parents[1] / "docs"
SCRIPTS = re.findall(
    r"^## (.+?)\n.*?^```python\n(.*?)^```",
    (DOCS / "recipes.md").read_text(),
    re.DOTALL | re.MULTILINE,
)


@pytest.fixture
def box(reference, tmp_path, monkeypatch):
    """A folder to run in. Without a model in the box, it is the smallest public one."""
    folder, load = reference / "stories260K", Llama.load
    small = folder / "stories260K.bin"
    try:
        load("stories-box")
    except (OSError, ValueError):
        models = {"stories-box": small, "stories-box-q8": tmp_path / "q8.bin"}
        export(*models.values(), 2)
        monkeypatch.setattr(Llama, "load", lambda name: load(models[name], folder / "tok512.bin"))
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "7B").symlink_to(reference / "meta_gqa_2shards_fp16")
    (tmp_path / "stories15M.bin").symlink_to(small)
    monkeypatch.chdir(tmp_path)


def test_api(box):
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
def test_recipe(box, capsys, title, script):
    assert len(script.splitlines()) <= 15
    exec(compile(script, title, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()
