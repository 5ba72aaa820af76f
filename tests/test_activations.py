"""How the inputs of matrices in GGUF's blocks are rounded: an argument of each model."""

import copy
import pickle

import numpy as np
import pytest

from llama2np import Llama
from llama2np.cli import main
from llama2np.formats import loading
from llama2np.store.catalogue import CATALOGUE

pytestmark = pytest.mark.compiled
TOKENS = [1, 5, 9, 3, 7, 11]


@pytest.fixture(scope="module")
def path(reference):
    return reference / "gguf" / "llama.Q8_0.gguf"


def error(model, exact):
    return np.square(logits(model) - exact).mean()


def logits(model):
    return model.forward(TOKENS, model.new_state(), all_logits=True)


def test_two_models_of_a_process_differ(path):
    exact = logits(Llama.load(path, engine="numpy"))
    plain, finer = Llama.load(path), Llama.load(path, activations="int8x2")
    assert (plain.transformer.activations, finer.transformer.activations) == ("int8", "int8x2")
    assert 0 < error(finer, exact) < error(plain, exact) / 100
    np.testing.assert_array_equal(logits(plain), logits(Llama.load(path, activations="int8")))


def test_copies_round_the_same(path):
    model = Llama.load(path, activations="int8x2")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.with_hooks()):
        np.testing.assert_array_equal(logits(twin), logits(model))


def test_another_word_is_refused(path):
    with pytest.raises(ValueError, match="activations must be 'int8' or 'int8x2', not 'int4'"):
        Llama.load(path, activations="int4")


def test_the_default_is_that_of_the_catalogue():
    """It is decided for the name of a model: chats in Python and in the terminal have it alike."""
    assert CATALOGUE["smollm2"].activations == "int8x2"
    first = CATALOGUE["smollm2"].items[0].name
    for name, wanted, found in (
        ("smollm2", None, "int8x2"),
        (first, None, "int8x2"),
        ("smollm2", "int8", "int8"),
        ("stories15M", None, "int8"),
        ("else.gguf", "int8x2", "int8x2"),
    ):
        assert loading.activations_for(name, wanted) == found


def test_the_flag(path, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and then it was not there")
    seen = {}
    for kind in ("int8", "int8x2"):
        flags = ["--activations", kind, "--against", str(path), "--stride", "8"]
        assert main(["perplexity", str(path), str(text), *flags]) == 0
        seen[kind] = capsys.readouterr().out
    assert main(["run", str(path), "--activations", "int4"]) == 1
    assert "expected int8 or int8x2, found 'int4'" in capsys.readouterr().err
    assert main(["run", str(path), "--engine", "numpy", "--activations", "int8"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
