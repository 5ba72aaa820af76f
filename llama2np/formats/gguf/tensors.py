"""The tensors of a GGUF file by our names. All matrices are views of the file.

Their names are those of llama.cpp: constants.py of the package `gguf`.
"""

from __future__ import annotations

import numpy as np

from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.gguf.file import GgufFile, GgufTensor
from llama2np.model.config import Config
from llama2np.model.gguf_blocks import Blocks
from llama2np.model.weights import Dense, Matrix

Tensor = Matrix | np.ndarray  # a matrix, or a norm or bias

# {their name without ".weight" or ".bias": ours}
NAMES = {
    "token_embd": "embedding",
    "position_embd": "position_embedding",
    "token_types": "type_embedding",
    "token_embd_norm": "embedding_norm",
    "output_norm": "final_norm",
    "output": "classifier",
}
LAYER_NAMES = {
    "attn_norm": "attn_norm",
    "attn_q": "wq",
    "attn_k": "wk",
    "attn_v": "wv",
    "attn_q_norm": "q_norm",
    "attn_k_norm": "k_norm",
    "attn_output": "wo",
    "post_attention_norm": "post_attn_norm",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "w_gate",
    "ffn_up": "w_up",
    "ffn_down": "w_down",
    "post_ffw_norm": "post_ffn_norm",
    "ffn_gate_inp": "router",
    # BERT has its norms after the branches
    "attn_output_norm": "attn_norm",
    "layer_output_norm": "ffn_norm",
}
EXPERTS = {"ffn_gate_exps": "w_gate", "ffn_up_exps": "w_up", "ffn_down_exps": "w_down"}
_TABLES = ("rope_freqs", "rope_factors_long", "rope_factors_short")  # for rope.py


def our_tensors(config: Config, file: GgufFile) -> dict[str, Tensor]:
    """The tensors. Raises CheckpointError for one that has no name here, and ValueError for one of
    the wrong shape.
    """
    found: dict[str, Tensor] = {}
    for theirs, tensor in file.tensors.items():
        name, _, last = theirs.rpartition(".")
        ours = _our_name(name)
        if last not in ("weight", "bias") or not ours:
            if name.rpartition(".")[2] in _TABLES:
                continue
            raise CheckpointError(
                f"{tensor.where}: is not part of architecture {file.metadata.architecture}"
            )
        suffix = ".bias" if last == "bias" else ""
        for part, value in _split(ours, _value(tensor), config).items():
            found[part + suffix] = value
    if config.architecture != "bert":
        found.setdefault("classifier", found["embedding"])  # tied
    return found


def _our_name(theirs: str) -> str:
    """Our name, or a name that `_split` knows; "" for an unknown one."""
    block, _, rest = theirs.partition(".")
    if block != "blk":
        return NAMES.get(theirs, "")
    layer, _, name = rest.partition(".")
    stem, _, expert = name.partition(".")
    if not layer.isdecimal() or len(layer) > 4:
        return ""
    ours = LAYER_NAMES.get(name) or (name if name in ("attn_qkv", *EXPERTS) else "")
    if expert.isdecimal() and stem in ("ffn_gate", "ffn_up", "ffn_down"):
        ours = f"experts.{expert}.{LAYER_NAMES[stem]}"  # in files of 2023
    return f"layers.{int(layer)}.{ours}" if ours else ""


def _value(tensor: GgufTensor) -> Tensor:
    """A matrix, or a norm or bias as float32."""
    if len(tensor.shape) > 1:
        return tensor.matrix()
    return np.asarray(tensor.floats(), np.float32)


def _split(name: str, tensor: Tensor, config: Config) -> dict[str, Tensor]:
    """What is fused in the file, as separate tensors: views of rows, or of stacked matrices."""
    block, _, last = name.rpartition(".")
    c, rows = config, tensor.shape[0]
    if last == "attn_qkv":
        ends = {"wq": c.q_dim, "wk": c.q_dim + c.kv_dim, "wv": c.q_dim + 2 * c.kv_dim}
        if rows != ends["wv"]:
            raise ValueError(f"attn_qkv has {rows:,} rows, expected {ends['wv']:,}")
        starts = (0, *ends.values())
        return {
            f"{block}.{part}": _rows(tensor, start, end)
            for (part, end), start in zip(ends.items(), starts, strict=False)
        }
    if last == "w_up" and rows == 2 * c.hidden_dim:  # Phi-3: gate, then up
        return {
            f"{block}.w_gate": _rows(tensor, 0, c.hidden_dim),
            f"{block}.w_up": _rows(tensor, c.hidden_dim, rows),
        }
    if last in EXPERTS:
        if rows != c.n_experts or isinstance(tensor, np.ndarray) or len(tensor.shape) != 3:
            raise ValueError(f"{last} has shape {tensor.shape}, expected {c.n_experts} matrices")
        return {f"{block}.experts.{e}.{EXPERTS[last]}": _part(tensor, e) for e in range(rows)}
    return {name: tensor}


def _rows(tensor: Tensor, start: int, end: int) -> Tensor:
    if isinstance(tensor, np.ndarray):
        return tensor[start:end]
    return _part(tensor, slice(start, end))


def _part(tensor: Matrix, index: int | slice) -> Matrix:
    if isinstance(tensor, Blocks):
        return tensor[index]
    return Dense(tensor.arrays[0][index])
