"""llama2.c's inference in readable Python: NumPy arrays, numba kernels, the same tokens."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama2np.chat import Chat
    from llama2np.checkpoint import CheckpointError
    from llama2np.config import Config
    from llama2np.evaluation import Comparison, Evaluation, compare, evaluate
    from llama2np.llama import Llama
    from llama2np.sampler import Sampler
    from llama2np.tokenizer import Tokenizer, TokenizerError
    from llama2np.trace import Edit, Trace
    from llama2np.transformer import State, Transformer

__all__ = [
    "Chat",
    "CheckpointError",
    "Comparison",
    "Config",
    "Edit",
    "Evaluation",
    "Llama",
    "Sampler",
    "State",
    "Tokenizer",
    "TokenizerError",
    "Trace",
    "Transformer",
    "compare",
    "evaluate",
]
__version__ = "0.1.0"

_MODULES = {
    "CheckpointError": "checkpoint",
    "Comparison": "evaluation",
    "Edit": "trace",
    "compare": "evaluation",
    "evaluate": "evaluation",
    "State": "transformer",
    "TokenizerError": "tokenizer",
}


def __getattr__(name: str) -> object:
    """The public names, imported at first use: a command loads what it needs and no more."""
    if name not in __all__:
        raise AttributeError(f"module 'llama2np' has no attribute {name!r}")
    module = import_module(f"llama2np.{_MODULES.get(name, name.lower())}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
