"""The report on speed: its arithmetic and its text. How fast anything was is not looked at."""

import argparse
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.programs import Task
from llama2np.bench.form import aligned


@pytest.fixture
def options(tmp_path):
    return argparse.Namespace(
        **dict(
            shapes=["260K"], llama2c=tmp_path, llamacpp=None, ctranslate2=None, rounds=3, threads=2
        )
    )


def test_rounds_go_through_all_programs_in_turn(capsys):
    calls = []

    def program(name):
        return lambda: calls.append(name) or float(len(calls))

    found = report.rounds({"a": program("a"), "b": program("b")}, 3)
    assert calls == ["a", "b"] * 3
    assert found == {"a": [1, 3, 5], "b": [2, 4, 6]}


def test_a_ratio_is_the_median_of_the_rounds_ratios():
    found = {"ours": [10.0, 20.0, 90.0], "theirs": [10.0, 10.0, 100.0]}
    assert report.ratio(found, "ours", "theirs") == "1.00"
    assert report.ratio(found, "ours", "others") == "–"


def test_int8_shapes_meet_int8_programs():
    assert Task("110M-q8").q8 and not Task("110M").q8


def test_the_preface_names_no_folder_of_this_machine(options):
    text = "\n".join(report.preface(options))
    assert "python -m benchmarks.report 260K --llama2c FOLDER --rounds 3 --threads 2" in text
    assert str(options.llama2c) not in text and str(Path.home()) not in text


def test_the_readme_has_one_place_for_the_tables():
    assert report.README.read_text().count(report.MARK) == 1


def test_tables_are_aligned():
    assert aligned(("a", "long"), [("word", "1")]) == [
        "| a    | long |",
        "| ---- | ---: |",
        "| word |    1 |",
    ]


def test_an_unknown_shape():
    with pytest.raises(SystemExit, match="7B"):
        report.main(["7B"])
