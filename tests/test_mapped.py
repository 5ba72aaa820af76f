"""Views of mapped files: the advice that the system gets about their memory."""

import numpy as np
import pytest

from llama2np.formats import loading, mapped


@pytest.fixture
def advice(monkeypatch):
    """The arrays that are advised about, with the advice."""
    found = []
    real = mapped._advise

    def advise(array, name, *rest, **more):
        found.append((id(array), name))
        real(array, name, *rest, **more)

    monkeypatch.setattr(mapped, "_advise", advise)
    return found


def test_a_file_is_read_ahead_if_there_is_memory_for_it(tmp_path, monkeypatch, advice):
    path, contents = tmp_path / "x", np.arange(2**14, dtype=np.uint8)
    path.write_bytes(contents.tobytes())
    with path.open("rb") as file:
        view = mapped.map_weights(file)[100:9000]
    for available, expected in ((2 * view.nbytes - 1, []), (2 * view.nbytes, [view])):
        monkeypatch.setattr(mapped, "_available", lambda size=available: size)
        mapped.read_ahead([view])
        assert advice == [(id(each), "MADV_WILLNEED") for each in expected]
    np.testing.assert_array_equal(view, contents[100:9000])


def test_a_model_that_is_going_to_run_is_read_ahead(reference, monkeypatch, advice):
    monkeypatch.setattr(mapped, "_available", lambda: 2**30)
    loading.load(reference / "gguf" / "llama.Q8_0.gguf")
    assert not advice  # it may only be described or converted
    model = loading.transformer(reference / "gguf" / "llama.Q8_0.gguf", "numpy")
    assert [name for _, name in advice] == ["MADV_WILLNEED"] * len(model.weights.arrays)


@pytest.mark.skipif(not mapped._available(), reason="only Linux says it")
def test_available_memory():
    assert 2**20 < mapped._available() < 2**50
