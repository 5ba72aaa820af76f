"""Folders of transformers with random weights and a tokenizer of the reference."""

import json

import numpy as np
from conftest import writable_copy
from safetensors.numpy import save_file

from llama2np.text.tokenizer import Tokenizer


def write_gpt2(path, tokenizer, layers=6, dim=32):
    """A folder as the hub has GPT-2's. tokenizer: a folder of the reference."""
    shapes = {"wte": (_copied(tokenizer, path), dim), "wpe": (128, dim)}
    norms = ["ln_f", *(f"h.{i}.{name}" for i in range(layers) for name in ("ln_1", "ln_2"))]
    biases = {}
    for i in range(layers):
        for name, (n, d) in {
            **{"attn.c_attn": (dim, 3 * dim), "attn.c_proj": (dim, dim)},
            **{"mlp.c_fc": (dim, 4 * dim), "mlp.c_proj": (4 * dim, dim)},
        }.items():
            shapes[f"h.{i}.{name}"], biases[f"h.{i}.{name}"] = (n, d), d
    config = {"model_type": "gpt2", "n_embd": dim, "n_layer": layers, "n_head": 4}
    config |= {"n_positions": 128, "vocab_size": shapes["wte"][0]}
    _write(path, config, shapes, biases | dict.fromkeys(norms, dim), norms)


def write_bert(path, tokenizer, layers=2, dim=32, labels=()):
    """A folder as the hub has BERT's, with a head for masked words, or with one for labels."""
    shapes = {
        "bert.embeddings.word_embeddings": (_copied(tokenizer, path), dim),
        "bert.embeddings.position_embeddings": (64, dim),
        "bert.embeddings.token_type_embeddings": (2, dim),
        "cls.predictions.transform.dense": (dim, dim),
    }
    norms = ["bert.embeddings.LayerNorm", "cls.predictions.transform.LayerNorm"]
    biases = {"cls.predictions.transform.dense": dim}
    if labels:
        shapes = {name: shape for name, shape in shapes.items() if "cls" not in name}
        norms, biases = norms[:1], {"bert.pooler.dense": dim, "classifier": len(labels)}
        shapes |= {"bert.pooler.dense": (dim, dim), "classifier": (len(labels), dim)}
    for i in range(layers):
        block = f"bert.encoder.layer.{i}."
        norms += [block + "attention.output.LayerNorm", block + "output.LayerNorm"]
        for name, (d, n) in {
            **{f"attention.self.{name}": (dim, dim) for name in ("query", "key", "value")},
            **{"attention.output.dense": (dim, dim), "intermediate.dense": (4 * dim, dim)},
            "output.dense": (dim, 4 * dim),
        }.items():
            shapes[block + name], biases[block + name] = (d, n), d
    count = shapes["bert.embeddings.word_embeddings"][0]
    config = {"model_type": "bert", "hidden_size": dim, "num_hidden_layers": layers}
    config |= {"num_attention_heads": 4, "intermediate_size": 4 * dim, "vocab_size": count}
    config |= {"max_position_embeddings": 64, "type_vocab_size": 2}
    if labels:
        config["id2label"] = dict(enumerate(labels))
        config["architectures"] = ["BertForSequenceClassification"]
    _write(path, config, shapes, biases | dict.fromkeys(norms, dim), norms)


def _copied(tokenizer, path) -> int:
    """Copy the files of a tokenizer; return the number of its pieces."""
    writable_copy(tokenizer, path)
    (path / "cases.json").unlink()
    return Tokenizer.load(path).vocab_size


def _write(path, config, shapes, biases, norms):
    random = np.random.default_rng(0)
    tensors = {f"{n}.weight": 0.3 * random.standard_normal(s) for n, s in shapes.items()}
    tensors |= {f"{name}.weight": 1 + 0.1 * random.standard_normal(biases[name]) for name in norms}
    tensors |= {f"{name}.bias": 0.1 * random.standard_normal(d) for name, d in biases.items()}
    (path / "config.json").write_text(json.dumps(config))
    save_file({n: t.astype(np.float32) for n, t in tensors.items()}, path / "model.safetensors")
