"""A tiny Hugging Face folder of a Llama, and what is expected of its conversion."""

import json
from dataclasses import replace

import numpy as np
from safetensors.numpy import save_file

from llama2np.cli.export import main as export
from llama2np.formats.huggingface.writing import llama_names
from llama2np.model.config import Config

CONFIG = Config(16, 24, 2, 4, 2, 40, 64)
HF_CONFIG = replace(CONFIG, rope_halves=1)  # the order of rows in wq and wk
HF = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
SHAPES = {
    "embed_tokens": (40, 16),
    "norm": (16,),
    "lm_head": (40, 16),
    "q_proj": (16, 16),
    "k_proj": (8, 16),
    "v_proj": (8, 16),
    "o_proj": (16, 16),
    "gate_proj": (24, 16),
    "up_proj": (24, 16),
    "down_proj": (16, 24),
    "input_layernorm": (16,),
    "post_attention_layernorm": (16,),
}


def read(tensor) -> np.ndarray:
    return np.concatenate(list(tensor.blocks()))


def random_tensors() -> dict:
    random = np.random.default_rng(0)
    return {
        theirs: random.standard_normal(SHAPES[theirs.split(".")[-2]], np.float32)
        for _, theirs in llama_names(CONFIG)
    }


def refused(capsys, tmp_path, flag, path) -> str:
    """Export, expecting one line and no file; return the line."""
    before = sorted(tmp_path.rglob("*"))
    assert export([str(tmp_path / "out.bin"), flag, str(path), "--version", "1"], "export.py") == 1
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and not told.out
    assert sorted(tmp_path.rglob("*")) == before
    return told.err


def write_folder(path, tensors=None, **fields):
    """Write such a folder, with these fields of config.json changed; return its path."""
    path.mkdir(exist_ok=True)
    save_file(tensors or random_tensors(), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(HF | fields))
    return path
