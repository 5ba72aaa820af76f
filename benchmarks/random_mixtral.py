"""A folder with a random Mixtral, as Hugging Face writes it."""

import json
from pathlib import Path

import numpy as np

# A Mixtral of 8 experts, of which 2 are used: 260 million parameters, grouped-query attention.
_MIXTRAL = dict(
    model_type="mixtral",
    architectures=["MixtralForCausalLM"],
    hidden_size=512,
    intermediate_size=1792,
    num_hidden_layers=10,
    num_attention_heads=16,
    num_key_value_heads=4,
    vocab_size=32000,
    max_position_embeddings=1024,
    num_local_experts=8,
    num_experts_per_tok=2,
    rms_norm_eps=1e-5,
    rope_theta=1e6,
    tie_word_embeddings=False,
)


def mixtral(folder: Path) -> Path:
    """A folder with a random Mixtral."""
    from safetensors.numpy import save_file

    path = folder / "mixtral"
    if (path / "model.safetensors").exists():
        return path
    path.mkdir(exist_ok=True)
    c, random, tensors = _MIXTRAL, np.random.default_rng(0), {}
    dim, hidden, kv = c["hidden_size"], c["intermediate_size"], c["hidden_size"] // 4

    def add(name, *shape):
        values = random.standard_normal(shape, np.float32) * np.float32(0.02)
        tensors[f"{name}.weight"] = values if len(shape) == 2 else np.ones(shape, np.float32)

    add("model.embed_tokens", c["vocab_size"], dim)
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}"
        for name, rows in (("q", dim), ("k", kv), ("v", kv), ("o", dim)):
            add(f"{at}.self_attn.{name}_proj", rows, dim)
        add(f"{at}.input_layernorm", dim)
        add(f"{at}.post_attention_layernorm", dim)
        add(f"{at}.block_sparse_moe.gate", c["num_local_experts"], dim)
        for e in range(c["num_local_experts"]):
            for name, rows, columns in (
                ("w1", hidden, dim),
                ("w3", hidden, dim),
                ("w2", dim, hidden),
            ):
                add(f"{at}.block_sparse_moe.experts.{e}.{name}", rows, columns)
    add("model.norm", dim)
    add("lm_head", c["vocab_size"], dim)
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(c))
    return path
