"""llama2.c's inference in readable Python: NumPy arrays, numba kernels, the same tokens."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama2np.beam import Beam, beam_search
    from llama2np.chat import Chat
    from llama2np.checkpoint import CheckpointError
    from llama2np.convert.export import export
    from llama2np.evaluation import Comparison, Evaluation, compare, evaluate
    from llama2np.generation import Generation
    from llama2np.llama import Llama
    from llama2np.model.config import Config
    from llama2np.model.hooks import Edit, Trace
    from llama2np.model.transformer import State, Transformer
    from llama2np.sampler import Sampler
    from llama2np.speculative import DraftModel, PromptLookup
    from llama2np.tokenizer import Tokenizer, TokenizerError

__all__ = [
    "Beam",
    "Chat",
    "CheckpointError",
    "Comparison",
    "Config",
    "DraftModel",
    "Edit",
    "Evaluation",
    "Generation",
    "Llama",
    "PromptLookup",
    "Sampler",
    "State",
    "Tokenizer",
    "TokenizerError",
    "Trace",
    "Transformer",
    "beam_search",
    "compare",
    "evaluate",
    "export",
]
__version__ = "0.1.0"

# Where a name stands, if not in the module that has its name.
_MODULES = {
    "CheckpointError": "checkpoint",
    "Comparison": "evaluation",
    "DraftModel": "speculative",
    "Config": "model.config",
    "Edit": "model.hooks",
    "Generation": "generation",
    "PromptLookup": "speculative",
    "State": "model.state",
    "TokenizerError": "tokenizer",
    "Trace": "model.hooks",
    "Transformer": "model.transformer",
    "beam_search": "beam",
    "compare": "evaluation",
    "evaluate": "evaluation",
    "export": "convert.export",
}


if not TYPE_CHECKING:  # who would take any name for one of ours

    def __getattr__(name: str) -> object:
        """The public names, imported at first use: a command loads what it needs and no more."""
        if name not in __all__:
            raise AttributeError(f"module 'llama2np' has no attribute {name!r}")
        module = import_module(f"llama2np.{_MODULES.get(name, name.lower())}")
        return getattr(module, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
