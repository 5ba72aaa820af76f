"""Names that do not exist: the nearest one, or the way to get it, is named."""

import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from endless import GOOD
from other_files import MODELS, POINTER, refused

from llama2np import Llama, advice
from llama2np.cli import main


@pytest.fixture
def put(tmp_path):
    """put(data) -> a file of these bytes, whose name says nothing."""

    def put(data, name="thing"):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return put


def test_a_missing_model_that_can_be_fetched(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("stories15M.bin", "stories42M.bin", "stories110M.bin"):
        for command in ("run", "bench", "inspect"):
            assert main([command, name]) == 1
            said = capsys.readouterr().err
            assert f"{name}: No such file or directory; `make {name}` in {ROOT} fetches it" in said
    assert main(["run", "stories-box", "-z", "tokenizer.bin"]) == 1
    assert f"`make tokenizer.bin` in {ROOT}" in capsys.readouterr().err
    monkeypatch.chdir(ROOT)
    said = refused(Llama.load, "nowhere/stories15M.bin", error=FileNotFoundError)
    assert "`make stories15M.bin` fetches it" in said


def test_what_pip_installed_never_advises_make(tmp_path):
    """Nor export.py, which is not installed."""
    shutil.copytree(ROOT / "llama2np", tmp_path / "llama2np")
    (tmp_path / "trained").write_bytes(MODELS["trainer"][0])
    (tmp_path / "model.bin").write_bytes(GOOD)
    models = ["stories15M.bin", "stories15.bin", "model.bin", "trained", "-z tokenizer.bin"]
    code = f"""
from llama2np.cli import main
for words in {models}:
    assert main(["run", *words.split()]) == 1
"""
    python = [sys.executable, "-B", "-c", code]
    done = subprocess.run(python, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "make" not in done.stderr and ".py" not in done.stderr
    said = done.stderr.splitlines()
    assert "`llama2np pull stories15M` downloads it" in said[0]
    assert "did you mean stories15M.bin?" in said[1]
    assert all("`llama2np pull tokenizer.bin --folder .`" in line for line in (said[2], said[4]))
    assert "`llama2np export out.bin --checkpoint trained`" in said[3]


@pytest.mark.parametrize(
    "name, meant",
    [
        ("stories-bx", "stories-box?"),
        ("Stories-Box", "stories-box?"),
        ("stories_box_q8", "stories-box-q8?"),
        ("stories-box.bin", "stories-box?"),
        ("stories15m.bin", "stories15M.bin?"),
        ("models/stories42", "stories42M?"),
    ],
)
def test_the_nearest_model(name, meant):
    assert f"did you mean {meant}" in refused(Llama.load, name, error=FileNotFoundError)


def test_a_name_of_a_hub(capsys):
    for words in ("run meta-llama/Llama-2-7b", "export x --hf TinyLlama/TinyLlama-1.1B-Chat-v1.0"):
        assert main(words.split()) == 1
        assert "on huggingface.co: `llama2np pull " in capsys.readouterr().err


def test_a_suggestion_is_made_once(capsys):
    for words in (
        "inspect stories-bx",
        "inspect stories15M.bin",
        "export x --checkpoint tokenizer.bin",
    ):
        assert main(words.split()) == 1
        assert capsys.readouterr().err.count(";") == 1


def test_a_bundled_model_after_another_flag(capsys):
    for flag in ("--checkpoint", "--hf", "--meta-llama"):
        assert main(["export", "out.bin", flag, "stories-box"]) == 1
        assert "out.bin --bin stories-box`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, meant",
    [
        ("rnu", "run?"),
        ("exprot x", "export?"),
        ("perplexty", "perplexity?"),
        ("stories-box", "llama2np run stories-box?"),
        ("--hlep", "--help?"),
        ("run --temprature 0.5", "--temperature?"),
        ("run --temp 0.5", "--temperature?"),
        ("run --top_k 40", "--top-k?"),
        ("run --top_k=40", "--top-k?"),
        ("run -temperature 0.5", "--temperature?"),
        ("run -prompt=A", "--prompt?"),
        ("run --Prompt A", "--prompt?"),
        ("run -m chta", "chat?"),
        ("run --mode=generat", "generate?"),
        ("export x --checkpoit y", "--checkpoint?"),
        ("export x --bin y --version -1 --dtype fp61", "fp16?"),
        ("inspect x --agianst y", "--against?"),
        ("bench x --jsn", "--json?"),
        ("lens --promt x", "--prompt?"),
        ("attend --laier 1", "--layer?"),
        ("perplexity --flie x", "--file?"),
        ("warmup --hepl", "--help?"),
    ],
)
def test_the_nearest_command_and_flag(capsys, argv, meant):
    assert main(argv.split()) == 1
    said = capsys.readouterr().err
    assert f"did you mean {meant}" in said and said.count("\n") == 1


@pytest.mark.parametrize("argv", ["zzz", "run --zzz", "run -q", "run -m zzz"])
def test_no_suggestion_where_nothing_is_near(capsys, argv):
    assert main(argv.split()) == 1
    assert "did you mean" not in capsys.readouterr().err


def test_values_are_no_flags(capsys, put):
    assert main(["run", str(put(POINTER)), "-i", "--temprature", "-t0.5", "-s=3"]) == 1
    said = capsys.readouterr().err
    assert "did you mean" not in said


def test_an_unknown_option_of_the_library(model):
    said = refused(lambda: model.generate("A", temprature=1), error=TypeError)
    assert said.endswith("did you mean temperature?")


def test_a_long_name_is_no_work():
    assert advice.nearest("x" * 10**6, ["run"]) is None
