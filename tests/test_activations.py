"""How the inputs of matrices in GGUF's blocks are rounded: an argument of each model."""

import copy
import hashlib
import pickle
import random
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest

from llama2np import Llama
from llama2np.cli import main
from llama2np.formats import loading
from llama2np.store.catalogue import CATALOGUE, recommended

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
    network = model.transformer
    for twin in (copy.copy(network), pickle.loads(pickle.dumps(network)), network.with_hooks(())):
        assert twin.activations == "int8x2"
        np.testing.assert_array_equal(logits(Llama(twin, model.tokenizer)), logits(model))


def test_another_word_is_refused(path):
    with pytest.raises(ValueError, match="activations must be 'int8' or 'int8x2', not 'int4'"):
        Llama.load(path, activations="int4")


def test_the_file_has_the_defaults_of_its_name(tmp_path, monkeypatch):
    """So it answers alike by name and by path, and another file of that name does not."""
    known = CATALOGUE["smollm2"]
    contents = random.Random(0).randbytes(2**17)
    head = hashlib.sha256(contents[: 2**16]).hexdigest()
    item = replace(known.items[0], size=len(contents), head=head)
    monkeypatch.setitem(CATALOGUE, "smollm2", replace(known, items=(item,)))
    same, longer, other = (tmp_path / name for name in ("any.gguf", "longer.gguf", item.name))
    same.write_bytes(contents)
    longer.write_bytes(contents + b"x")
    other.write_bytes(contents[::-1])
    for path, found in (
        *[(same, "int8x2"), (str(same), "int8x2")],
        *[(longer, "int8"), (other, "int8"), (tmp_path, "int8"), (tmp_path / "none", "int8")],
    ):
        assert loading.activations_for(path, None) == found
        assert (recommended(path) is None) == (found == "int8")
    monkeypatch.chdir(tmp_path)  # a file comes before a model of that name
    assert loading.activations_for(item.name, None) == "int8"


def test_the_default_is_that_of_the_catalogue():
    """It belongs to the model: chats in Python and in the terminal have it alike."""
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


@pytest.mark.parametrize("command", ("run", "chat", "serve", "bench", "perplexity", "lens"))
def test_the_flag(path, command, capsys):
    """Every command that runs a model passes it on."""
    seen = []

    def load(*arguments, **options):
        seen.append(options["activations"])
        raise ValueError("enough")

    words = {"perplexity": ["--file", str(path)], "lens": ["-i", "x"]}.get(command, [])
    with patch.object(Llama, "load", load), patch.object(loading, "transformer", load):
        for word in ("int8", "int8x2"):
            assert main([command, str(path), *words, "--activations", word]) == 1
    assert seen == ["int8", "int8x2"], capsys.readouterr().err


def test_wrong_flags(path, capsys):
    for flags, expected in (
        (["--activations", "int4"], "expected int8 or int8x2, found 'int4'"),
        (["--engine", "numpy", "--activations", "int8"], "NumPy computes in float32"),
    ):
        assert main(["run", str(path), *flags]) == 1
        error = capsys.readouterr().err
        assert expected in error and error.count("\n") == 1
