"""GGUF files of a real shape with random weights, in the mixtures of llama.cpp's recipes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.llamacpp import add_header
from benchmarks.random_models import header_of
from llama2np.formats.gguf.quantize import quantize

# Recipe: the format of most matrices, that of the classifier, and that of half of attn_v, ffn_down.
RECIPES = {
    "Q4_0": ("Q4_0", "Q6_K", "Q4_0"),
    "Q4_K_M": ("Q4_K", "Q6_K", "Q6_K"),
    "Q6_K": ("Q6_K", "Q6_K", "Q6_K"),
    "Q8_0": ("Q8_0", "Q8_0", "Q8_0"),
}
_DISTINCT = 64  # rows of a matrix; the others repeat them, since quantizing takes minutes


def write_gguf(recipe: str, folder: Path, shape: str = "1.1B-q8") -> Path:
    """Write the model of a recipe, unless it is there. It needs the package gguf."""
    import gguf

    path = folder / f"{shape.removesuffix('-q8')}.{recipe}.gguf"
    if path.exists():
        return path
    config, (main, head, finer) = header_of(shape).config, RECIPES[recipe]
    dim, hidden, layers, kv_dim = config.dim, config.hidden_dim, config.n_layers, config.kv_dim
    partial = path.with_suffix(".partial")
    writer, random = gguf.GGUFWriter(partial, "llama"), np.random.default_rng(0)
    add_header(writer, asdict(config) | {"q8": main == "Q8_0"})

    def matrix(name: str, rows: int, columns: int, kind: str) -> None:
        values = random.standard_normal((_DISTINCT, columns), np.float32) * np.float32(0.02)
        blocks = quantize(values, kind)
        blocks = np.resize(blocks, (rows, blocks.shape[1]))
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=gguf.GGMLQuantizationType[kind])

    matrix("token_embd", config.vocab_size, dim, main)
    matrix("output", config.vocab_size, dim, head)
    writer.add_tensor("output_norm.weight", np.ones(dim, np.float32))
    for i in range(layers):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{norm}.weight", np.ones(dim, np.float32))
        eighth = layers // 8
        better = i < eighth or i >= 7 * layers // 8 or (i - eighth) % 3 == 2
        fine = finer if better else main
        for name, rows, columns, kind in (
            *[("attn_q", dim, dim, main), ("attn_k", kv_dim, dim, main)],
            *[("attn_v", kv_dim, dim, fine), ("attn_output", dim, dim, main)],
            *[("ffn_gate", hidden, dim, main), ("ffn_up", hidden, dim, main)],
            ("ffn_down", dim, hidden, fine),
        ):
            matrix(f"blk.{i}.{name}", rows, columns, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return partial.rename(path)
