"""The notebooks run, and what is written down of them is theirs."""

import os
import re
from pathlib import Path

import forks
import pytest
from conftest import EXHAUSTIVE, ROOT

DOCS = ROOT / "docs"
NOTEBOOKS = ("one_token", "teach_it", "what_a_head_looks_at", "what_quantization_costs")


def run(code: str, folder: Path) -> str:
    """What Python prints for it, in a folder with the first two stories."""
    stories = (DOCS / "stories.txt").read_text(encoding="utf-8").split("\n\n")
    assert len(stories) > 2
    (folder / "stories.txt").write_text("\n\n".join(stories[:2]), encoding="utf-8")
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": paths}
    options = dict(cwd=folder, env=environment, capture_output=True, text=True)
    done = forks.run(["-c", code], **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cells(name: str) -> list[tuple[str, str]]:
    """The (kind, text) of a notebook's cells: jupytext's percent format."""
    script = (DOCS / f"{name}.py").read_text(encoding="utf-8")
    found = re.split(r"^# %%(.*)\n", script, flags=re.MULTILINE)[1:]
    return list(zip([kind.strip() for kind in found[::2]], found[1::2], strict=True))


def test_these_are_the_notebooks():
    assert sorted(path.stem for path in DOCS.glob("*.py")) == sorted(NOTEBOOKS)


OTHERS = NOTEBOOKS[2:]  # minutes in plain Python, as "teach_it"


@pytest.mark.parametrize(
    "name",
    [
        "one_token",
        pytest.param("teach_it", marks=pytest.mark.compiled),
        *(pytest.param(n, marks=[pytest.mark.compiled, pytest.mark.exhaustive]) for n in OTHERS),
    ],
)
def test_a_notebook_runs(drawing, name, tmp_path):
    code = (DOCS / f"{name}.py").read_text(encoding="utf-8")
    if name == "teach_it" and not EXHAUSTIVE:
        assert (steps := "Settings(60,") in code
        code = code.replace(steps, "Settings(6,")
    assert run(code, tmp_path)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_is_written_down_is_of_this_notebook(name):
    """`make docs` was run after the last change; numbers may differ between machines."""
    page, at = (DOCS / f"{name}.md").read_text(encoding="utf-8"), 0
    for kind, text in cells(name):
        text = re.sub(r"^# ?", "", text, flags=re.MULTILINE) if kind == "[markdown]" else text
        assert text.strip() in page[at:], f"run `make docs`: not in {name}.md: {text}"
        at = page.index(text.strip(), at)


def test_the_pictures_are_small_and_in_use():
    pages = [*DOCS.glob("*.md"), ROOT / "README.md"]
    used = set()
    for page in pages:
        for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            used.add((page.parent / link).resolve())
    assert used == {path.resolve() for path in (DOCS / "images").glob("*")}
    for path in used:
        assert path.stat().st_size < 120_000, path
