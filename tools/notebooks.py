"""Run the notebooks of docs/ and write them, with their output and pictures, as Markdown.

    python -m tools.notebooks                  all of them
    python -m tools.notebooks one_token        one

A notebook is a Python script (jupytext's percent format), which Jupyter and VS Code open as cells.
docs/NAME.py becomes docs/NAME.md, and its pictures docs/images/NAME_*.png. This needs the extra
`docs`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jupytext
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import ExecutePreprocessor

from llama2np.atomic import write_file

DOCS = Path(__file__).parents[1] / "docs"
_LARGEST = 120_000  # bytes of a picture


def render(source: Path) -> None:
    """Execute a notebook; write its Markdown and its pictures, and replace earlier ones."""
    notebook = jupytext.read(source)
    where = {"metadata": {"path": str(DOCS)}}
    ExecutePreprocessor(timeout=600, kernel_name="python3").preprocess(notebook, where)
    resources = {"unique_key": source.stem, "output_files_dir": "images"}
    text, resources = MarkdownExporter().from_notebook_node(notebook, resources)
    for old in (DOCS / "images").glob(f"{source.stem}_*.png"):
        old.unlink()
    (DOCS / "images").mkdir(exist_ok=True)
    for name, data in resources["outputs"].items():
        if len(data) > _LARGEST:
            sys.exit(f"{name}: {len(data):,} bytes, expected {_LARGEST:,} at most: draw it smaller")
        write_file(DOCS / name, data)
    lines = [line.rstrip() for line in text.strip().splitlines()]
    note = f"<!-- Made by `make docs` from {source.name}: change that. -->"
    write_file(source.with_suffix(".md"), "\n".join([note, "", *lines, ""]).encode())


def main(names: list[str]) -> None:
    for source in [DOCS / f"{name}.py" for name in names] or sorted(DOCS.glob("*.py")):
        print(source.relative_to(DOCS.parent), flush=True)
        render(source)


if __name__ == "__main__":
    main(sys.argv[1:])
