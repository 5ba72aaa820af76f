"""llama2.c's inference in readable Python: NumPy arrays, numba kernels, the same tokens."""

from llama2np.chat import Chat
from llama2np.checkpoint import CheckpointError
from llama2np.config import Config
from llama2np.llama import Llama
from llama2np.sampler import Sampler
from llama2np.tokenizer import Tokenizer, TokenizerError
from llama2np.transformer import State, Transformer

__all__ = [
    "Chat",
    "CheckpointError",
    "Config",
    "Llama",
    "Sampler",
    "State",
    "Tokenizer",
    "TokenizerError",
    "Transformer",
]
__version__ = "0.1.0"
