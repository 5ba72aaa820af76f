"""Local LLM inference in readable Python: NumPy arrays, numba kernels, llama2.c's tokens."""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama2np.analysis.evaluation import Comparison, Evaluation, compare, evaluate
    from llama2np.analysis.zero_shot import zero_shot
    from llama2np.classifier import Classifier
    from llama2np.decoding.batch import Batch
    from llama2np.decoding.beam import Beam, beam_search
    from llama2np.decoding.chat import Chat
    from llama2np.decoding.completion import Completion
    from llama2np.decoding.generation import Generation
    from llama2np.decoding.sampler import Sampler
    from llama2np.decoding.speculative import DraftModel, PromptLookup
    from llama2np.encoder import Encoder
    from llama2np.formats.checkpoint import CheckpointError
    from llama2np.formats.export import export
    from llama2np.learning.gradients import loss_and_gradients
    from llama2np.llama import Llama
    from llama2np.model.config import Config
    from llama2np.model.hooks import Edit, Trace
    from llama2np.model.transformer import State, Transformer
    from llama2np.text.tokenizer import Tokenizer, TokenizerError

__all__ = [
    "Batch",
    "Beam",
    "Chat",
    "CheckpointError",
    "Classifier",
    "Comparison",
    "Completion",
    "Config",
    "DraftModel",
    "Edit",
    "Encoder",
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
    "loss_and_gradients",
    "zero_shot",
]
__version__ = "0.1.0"

# The module of each public name.
_MODULES = {
    "Batch": "decoding.batch",
    "Beam": "decoding.beam",
    "Chat": "decoding.chat",
    "CheckpointError": "formats.checkpoint",
    "Classifier": "classifier",
    "Comparison": "analysis.evaluation",
    "Completion": "decoding.completion",
    "Config": "model.config",
    "DraftModel": "decoding.speculative",
    "Edit": "model.hooks",
    "Encoder": "encoder",
    "Evaluation": "analysis.evaluation",
    "Generation": "decoding.generation",
    "Llama": "llama",
    "PromptLookup": "decoding.speculative",
    "Sampler": "decoding.sampler",
    "State": "model.state",
    "Tokenizer": "text.tokenizer",
    "TokenizerError": "text.tokenizer",
    "Trace": "model.hooks",
    "Transformer": "model.transformer",
    "beam_search": "decoding.beam",
    "compare": "analysis.evaluation",
    "evaluate": "analysis.evaluation",
    "export": "formats.export",
    "loss_and_gradients": "learning.gradients",
    "zero_shot": "analysis.zero_shot",
}


if not TYPE_CHECKING:  # with it, a type checker would accept any name

    def __getattr__(name: str) -> object:
        """Import a public name at its first use, so that a command loads only what it needs."""
        if name not in _MODULES:
            raise AttributeError(f"module 'llama2np' has no attribute {name!r}")
        return getattr(import_module(f"llama2np.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


# {old name of a module: new name}, so that scripts with the old names keep working.
_MOVED = {
    "config": "model.config",
    "transformer": "model.transformer",
    "weights": "model.weights",
    "trace": "model.hooks",
    "checkpoint": "formats.checkpoint",
    "convert": "formats",
    "tokenizer": "text.tokenizer",
    "generation": "decoding.generation",
    "sampler": "decoding.sampler",
    "logits": "decoding.logits",
    "chat": "decoding.chat",
    "beam": "decoding.beam",
    "speculative": "decoding.speculative",
    "lens": "analysis.lens",
    "evaluation": "analysis.evaluation",
    "plot": "analysis.plot",
}


class _Moved(MetaPathFinder, Loader):
    """Finds a module of _MOVED by its old name; it is the same module object."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        package, _, module = name.partition(".")
        known = package == __name__ and module in _MOVED
        return ModuleSpec(name, self) if known else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(f"{__name__}.{_MOVED[spec.name.partition('.')[2]]}")
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has just replaced it


sys.meta_path.append(_Moved())
