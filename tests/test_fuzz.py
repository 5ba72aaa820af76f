"""Damaged files of every kind, a few of what `make fuzz` reads many of; the same ones each time."""

import time
from functools import cache
from random import Random

import pytest
from conftest import EXHAUSTIVE
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.fuzz import memory_bound, problem
from tools.hostile import KINDS, damaged, exercise, valid, write_case
from tools.hostile_valid import MAIN


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory):
    """undamaged(kind): use the valid files of a kind, if no test has done that before."""

    @cache
    def use(kind):
        # The special ones are all the files of other kinds: one of each is enough here.
        cases = [valid(each)[0] for each in MAIN] if kind == "special" else valid(kind)
        for case in cases:
            folder = tmp_path_factory.mktemp("case")
            write_case(case, folder)
            exercise(kind, folder)

    return use


@pytest.mark.parametrize("kind", KINDS)
def test_undamaged_files_can_be_used(undamaged, kind):
    undamaged(kind)


# Without JIT, NumPy warns of the numbers in damaged weights.
@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.compiled] * (kind in ("bin", "hf"))) for kind in KINDS],
)
def test_damaged_files_are_refused_or_harmless(undamaged, tmp_path_factory, kind):
    """By our own errors, in a second of the processor, in memory that follows from their size."""
    undamaged(kind)  # what is compiled and imported is no case's doing

    @settings(max_examples=80 if EXHAUSTIVE else 6, database=None)
    @given(st.integers(0, 2**32))
    def check(seed):
        folder = tmp_path_factory.mktemp("case")
        size = write_case(damaged(kind, Random(seed)), folder)
        found = problem(kind, folder, size)
        if found.startswith("slow"):  # a kernel was compiled that no other case needs
            found = problem(kind, folder, size)
        assert found == ""

    check()


def test_what_is_wrong_is_found(tmp_path, monkeypatch):
    """Else nothing here would prove anything."""
    write_case(valid("safetensors")[0], tmp_path)

    def does(action):
        monkeypatch.setattr("tools.fuzz.exercise", lambda kind, folder: action())
        return problem("safetensors", tmp_path, 1000)

    def endless():
        while True:
            pass

    monkeypatch.setattr("tools.fuzz._SECONDS", 0.05)
    assert does(lambda: None) == ""
    assert "ZeroDivisionError" in does(lambda: 1 / 0)
    assert does(endless).startswith("slow")
    assert does(lambda: bytearray(2 * memory_bound(1000))).startswith("memory")
    monkeypatch.setattr("tools.fuzz._WAIT", 2)
    monkeypatch.setattr("tools.fuzz._TICK", 0.1)
    assert does(lambda: time.sleep(60)).startswith("slow")
