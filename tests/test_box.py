"""The bundled models give the same text here as with llama2.c's programs.

golden/box.json holds what `run` and `runq` of llama2.c (gcc -O3) printed for the two .bin files of
llama2np/box with its tokenizer.bin. They were built outside the repository, and run by
`python -m tools.golden`; the tests need nothing from there.
"""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, parameters

from llama2np import Llama, box
from llama2np.cli import main as llama2np
from llama2np.cli.run import main as run
from tools.samples import counts, sampled

CASES = json.loads((Path(__file__).parent / "golden/box.json").read_text())
OFTEN = [case for i, case in enumerate(CASES) if case["model"] == box.STORIES or i % 3 == 0]


@pytest.mark.compiled
@pytest.mark.parametrize(
    "case", parameters(CASES, OFTEN), ids=lambda c: f"{c['model']} {' '.join(c['args'])}"
)
def test_it_says_what_the_c_programs_say(case, capsys):
    int8 = case["model"] == box.STORIES_INT8
    assert run([case["model"], *case["args"]], prog="run", int8_only=int8) == 0
    assert capsys.readouterr().out == case["stdout"]


@pytest.mark.compiled
@pytest.mark.parametrize("name", box.NAMES)
def test_without_a_file_run_tells_a_story(name, capsys):
    """The model is found by its name, and is what runs where none is named."""
    flags = ["-t", "0", "-n", "32"]
    run([name, *flags], prog="run")
    named = capsys.readouterr().out
    run(flags, prog="run", int8_only=name == box.STORIES_INT8)
    assert capsys.readouterr().out == named != ""
    if name == box.STORIES:
        llama2np(["run", *flags])
        assert capsys.readouterr().out == named


def test_the_tokenizer_of_the_current_folder_is_not_for_it(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.bin").write_bytes(b"another model's")
    monkeypatch.chdir(tmp_path)
    assert Llama.load(box.STORIES).tokenizer.encode("Once") != []


def test_a_path_is_not_a_name(tmp_path):
    """./stories-box is a file of that name, and may be any model."""
    with pytest.raises(OSError, match="stories-box"):
        Llama.load(tmp_path / box.STORIES)
    for path in ("stories-box.bin", "./stories-box", Path(box.STORIES)):
        assert box.located(path) == path


def test_the_commands_know_its_name(tmp_path, capsys):
    assert llama2np(["inspect", box.STORIES_INT8, "--against", box.STORIES]) == 0
    assert "version 2" in capsys.readouterr().out
    out = tmp_path / "out.bin"
    assert llama2np(["export", str(out), "--version", "2", "--bin", box.STORIES]) == 0
    assert out.read_bytes() == (box.FOLDER / "stories-box-q8.bin").read_bytes()


def test_it_does_not_chat(capsys):
    assert run(["-m", "chat", "-i", "Hello"], prog="run.py") == 1
    error = capsys.readouterr().err
    assert error.startswith("run.py: stories-box is not a chat model") and error.count("\n") == 1


@pytest.mark.compiled
def test_both_are_one_model_in_two_precisions():
    exact, small = (Llama.load(name) for name in box.NAMES)
    assert exact.config == small.config
    config = exact.config
    assert config.dim % 64 == config.hidden_dim % 64 == 0 and config.n_kv_heads < config.n_heads
    tokens = exact.tokenizer.encode("Once upon a time, there was a little girl")
    a, b = (model.forward(tokens, model.new_state()) for model in (exact, small))
    assert np.abs(a - b).max() < 1.0 and a.argmax() == b.argmax()


def test_it_is_small():
    sizes = {path.name: path.stat().st_size for path in box.FOLDER.glob("*.*")}
    assert sizes["stories-box.bin"] < 4_000_000 and sizes["stories-box-q8.bin"] < 1_100_000
    assert {"README.md", "tokenizer.model", "tokenizer.bin"} < set(sizes)


@pytest.mark.compiled
def test_its_stories_end_and_keep_their_hero():
    """Ten of those whose counts are in the model card."""
    stories = sampled(Llama.load(box.STORIES), range(1, 11), 0.8)
    assert counts(stories).get("without fault", 0) >= 7


def test_a_wheel_holds_it(tmp_path):
    """Package data: the models, their tokenizers and their card."""
    pytest.importorskip("hatchling")
    copy = tmp_path / "source"
    ignore = shutil.ignore_patterns(".*", "__pycache__", "build", "dist")
    shutil.copytree(ROOT, copy, ignore=ignore)
    code = "from hatchling.build import build_wheel; print(build_wheel('..'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=True
    )
    names = zipfile.ZipFile(tmp_path / done.stdout.split()[-1]).namelist()
    for path in box.FOLDER.glob("*.*"):
        assert f"llama2np/box/{path.name}" in names
