"""Folders of transformers: a tiny valid one of every family, damage to config.json, and their use.

The folders have no tokenizer: tokens are then numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from llama2np.encoder import Encoder
from llama2np.formats import loading
from llama2np.formats.huggingface.families import FAMILIES
from llama2np.formats.huggingface.parts import Part
from llama2np.llama import Llama
from llama2np.model.config import Config
from llama2np.model.encoder import EncoderNetwork
from llama2np.model.networks import is_encoder
from llama2np.model.transformer import State

Fields = dict[str, Any]
Tensors = dict[str, np.ndarray]

_SHAPE = Config(8, 12, 2, 2, 1, 20, 16, head_dim=4)
_LLAMA: Fields = {
    **{"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 20},
    **{"max_position_embeddings": 16},
}
_ALL_HEADS = _LLAMA | {"num_key_value_heads": 2}
_GPT2: Fields = {"n_embd": 8, "n_head": 2, "n_layer": 2, "n_inner": 12, "n_positions": 16}
_BERT: Fields = {**_ALL_HEADS, "type_vocab_size": 2, "position_embedding_type": "absolute"}
_TWO = [1.0, 2.0]  # the factors of the two pairs of a head
_LAYER_TYPES = ["sliding_attention", "full_attention"]
_SCALINGS: list[Fields] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {
        **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "original_max_position_embeddings": 8,
    },
    {
        **{"rope_type": "yarn", "factor": 4.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0},
        **{"mscale_all_dim": 0.5, "truncate": False, "original_max_position_embeddings": 4},
    },
    {
        **{"rope_type": "longrope", "short_factor": _TWO, "long_factor": [2.0, 3.0]},
        "original_max_position_embeddings": 8,
    },
]
# For each folder: the family, the fields of config.json, and changes of the Config.
_FOLDERS: list[tuple[str, Fields, Fields]] = [
    ("llama", _LLAMA | {"attention_bias": True, "mlp_bias": True}, {}),
    (
        "llama",
        _LLAMA | {"architectures": ["LlamaForSequenceClassification"], "num_labels": 3},
        {"n_labels": 3},
    ),
    ("mistral", _LLAMA | {"sliding_window": 3}, {}),
    ("qwen2", _LLAMA | {"use_sliding_window": True, "max_window_layers": 1}, {}),
    (
        "qwen2",
        _LLAMA
        | {
            "dual_chunk_attention_config": {
                **{"chunk_size": 6, "local_size": 2, "original_max_position_embeddings": 4},
                "scaling": "both",
            }
        },
        {},
    ),
    ("qwen3", _LLAMA | {"sliding_window": 4, "layer_types": _LAYER_TYPES}, {}),
    (
        "mixtral",
        _LLAMA | {"num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 2},
        {"n_experts": 3, "n_experts_used": 2},
    ),
    ("phi3", _LLAMA | {"sliding_window": 5}, {}),
    ("phi", _ALL_HEADS | {"partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5}, {}),
    ("gpt_neox", _ALL_HEADS | {"rotary_pct": 0.5, "use_parallel_residual": False}, {}),
    ("gpt2", _GPT2 | {"vocab_size": 20, "scale_attn_by_inverse_layer_idx": True}, {}),
    ("gemma", _LLAMA, {}),
    (
        "gemma2",
        _LLAMA | {"sliding_window": 3, "query_pre_attn_scalar": 4, "final_logit_softcapping": 2.0},
        {},
    ),
    (
        "gemma3_text",
        _LLAMA
        | {"sliding_window": 3, "sliding_window_pattern": 2, "rope_local_base_freq": 100.0}
        | {"attn_logit_softcapping": 1.0, "layer_types": _LAYER_TYPES},
        {},
    ),
    ("bert", _BERT, {"n_types": 2}),
    (
        "bert",
        _BERT | {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a"}},
        {"n_labels": 1, "n_types": 2},
    ),
]


def folders() -> Iterator[tuple[Fields, Tensors]]:
    """config.json and the tensors of each valid folder."""
    for family, fields, changes in _FOLDERS:
        config = _config(fields, changes)
        yield {"model_type": family, **fields}, _tensors(family, fields, config)
    for scaling in _SCALINGS:
        old = dict(scaling)
        old["type"] = old.pop("rope_type")
        config = _config(_LLAMA, {})
        for rope in ({"rope_parameters": scaling | {"rope_theta": 100.0}}, {"rope_scaling": old}):
            yield {"model_type": "llama", **_LLAMA, **rope}, _tensors("llama", {}, config)
    scalings = zip(_LAYER_TYPES, _SCALINGS[:2], strict=True)  # windows have no scaling
    nested = {name: scaling | {"rope_theta": 50.0} for name, scaling in scalings}
    _, gemma, _ = next(each for each in _FOLDERS if each[0] == "gemma3_text")
    described = {"model_type": "gemma3_text", **gemma, "rope_parameters": nested}
    yield described, _tensors("gemma3_text", {}, _config(gemma, {}))


def _config(fields: Fields, changes: Fields) -> Config:
    """The Config of a folder as far as the shapes of its tensors need it."""
    kv_heads = fields.get("num_key_value_heads", 2)
    return Config(8, 12, 2, 2, kv_heads, 20, 16, head_dim=4, **changes)


def _tensors(family: str, fields: Fields, c: Config) -> Tensors:
    """Random tensors of a family by their names in its files."""
    of, random, found = FAMILIES[family], np.random.default_rng(0), {}
    biased = {
        name
        for flag, names in of.biases.items()
        if not flag or fields.get(flag, of.biased_by_default)
        for name in names.split()
    }
    for ours, theirs in _modules(family, c):
        base = ours.rpartition(".")[2]
        name, shape = (theirs.name if isinstance(theirs, Part) else theirs), _shape(family, base, c)
        if f"{name}.weight" in found:  # another part of a fused tensor
            continue
        found[f"{name}.weight"] = random.normal(0, 0.3, shape).astype(np.float32)
        if base in biased:
            outputs = shape[-1] if family == "gpt2" else shape[0]
            found[f"{name}.bias"] = random.normal(0, 0.3, outputs).astype(np.float32)
    if "mlm_dense" in dict(_modules(family, c)):
        found["cls.predictions.bias"] = np.zeros(c.vocab_size, np.float32)
    return found


def _modules(family: str, c: Config) -> list[tuple[str, str | Part]]:
    """The modules of a folder, with the heads that such a network has."""
    modules = dict(FAMILIES[family].modules(c))
    if FAMILIES[family].tied:
        modules.pop("classifier", None)
    if family == "bert":
        for name in ("mlm_dense", "mlm_norm", "nsp") if c.n_labels else ("labels",):
            del modules[name]
    elif c.n_labels:
        modules["classifier"] = "score"
    return list(modules.items())


def _shape(family: str, base: str, c: Config) -> tuple[int, ...]:
    """The shape of the tensor in a family's files that holds ours."""
    if base in ("wq", "wk", "wv") and family in ("phi3", "gpt2", "gpt_neox"):
        shape = (c.q_dim + 2 * c.kv_dim, c.dim)
    elif base in ("w_gate", "w_up") and family == "phi3":
        shape = (2 * c.hidden_dim, c.dim)
    else:
        shape = {
            **{"embedding": (c.vocab_size, c.dim), "classifier": (c.n_outputs, c.dim)},
            **{"position_embedding": (c.seq_len, c.dim), "type_embedding": (2, c.dim)},
            **{"wq": (c.q_dim, c.dim), "wk": (c.kv_dim, c.dim), "wv": (c.kv_dim, c.dim)},
            **{"wo": (c.dim, c.q_dim), "w_gate": (c.hidden_dim, c.dim)},
            **{"w_up": (c.hidden_dim, c.dim), "w_down": (c.dim, c.hidden_dim)},
            **{"router": (c.n_experts, c.dim), "q_norm": (c.head_dim,), "k_norm": (c.head_dim,)},
            **{"pooler": (c.dim, c.dim), "mlm_dense": (c.dim, c.dim), "nsp": (2, c.dim)},
            **{"labels": (c.n_labels, c.dim)},
        }.get(base, (c.dim,))
    transposed = family == "gpt2" and base in ("wq", "wk", "wv", "wo", "w_up", "w_down")
    return shape[::-1] if transposed else shape


def _numbers() -> list[Any]:
    signs: list[Any] = [0, -1, 1, 2, 3, 5, 2**31, 2**63, 10**18, 10**29, 10**400]
    return [*signs, 0.001, 0.4, -0.5, 1.0, 1e-300, 1e29, 1e308, float("nan"), float("inf")]


# Fields that may be absent, with one value that is nearly right.
_FIELDS: list[tuple[str, list[Any]]] = [
    ("head_dim", [3, 5, 8, 256, None]),
    ("partial_rotary_factor", [0.001, 0.3, 0.75, 2, 1e29]),
    ("rope_theta", [1, 0.5, 1e-300, 1e29]),
    ("num_labels", [1, 2, 10**9]),
    ("id2label", [{}, {"0": "\x1b[31m"}, {str(i): "" for i in range(3)}, {"x": None}]),
    ("architectures", [[], [3], ["BertForSequenceClassification"], "x"]),
    ("layer_types", [[], ["full_attention"], ["sliding_attention"] * 5, [[]], "full_attention"]),
    ("layer_types", [["full_attention"] * 2, ["sliding_attention"] * 2, ["x"] * 2, {"a": 1}]),
    ("sliding_window", [1, 17, 10**6, 10**29, -1, None]),
    ("use_sliding_window", [True, 1, "yes"]),
    ("num_local_experts", [1, 10**9, 10**29]),
    ("num_experts_per_tok", [1, 3, 4, 10**9]),
    ("tie_word_embeddings", [True, False, None, "x"]),
    ("eos_token_id", [[], [1, 2], [[]], -1, 10**30, "</s>"]),
    ("bos_token_id", [[], None, 10**30]),
    ("query_pre_attn_scalar", [1e-300, 1e29]),
    ("final_logit_softcapping", [1e-300, 1e29, None]),
    ("max_position_embeddings", [1, 3, 10**9, 10**18, 10**29]),
    ("model_type", [*FAMILIES, "", None]),
    ("rope_scaling", [*_SCALINGS, {}, [], {"type": "su"}, {"type": "yarn", "factor": 0.5}]),
    ("dual_chunk_attention_config", [{}, {"chunk_size": 10**29, "local_size": 10**28}]),
]


def damaged_config(data: bytes, random: Random) -> bytes:
    """config.json with one to three values changed, at any depth."""
    fields = json.loads(data)
    for _ in range(random.randint(1, 3)):
        if random.random() < 0.5:
            name, values = random.choice(_FIELDS)
            fields[name] = deepcopy(random.choice(values))
            continue
        inside = fields
        while True:
            keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
            if not keys:
                break
            key = random.choice(keys)
            if not isinstance(inside[key], (dict, list)):
                inside[key] = random.choice([*_numbers(), None, True, "x", [], {}])
                break
            if isinstance(inside[key], list) and random.random() < 0.5:
                inside[key] = inside[key] * random.choice((0, 2, 3)) or [1.5]
                break
            inside = inside[key]
    return json.dumps(fields).encode()


def exercise(folder: Path) -> None:
    """Open a folder as a user does, and read a few tokens; the results may be any numbers."""
    loaded = loading.load(folder)
    c = loaded.config
    tokens = [token % c.vocab_size for token in (1, 0, 2, 1, 5)][: c.seq_len]
    if is_encoder(c):
        network = EncoderNetwork(c, loaded.weights)
        network.forward([tokens, tokens], [[1] * len(tokens), [0] * (len(tokens) - 1) + [1]])
        Encoder(network, loaded.tokenizer(), loaded.labels, loaded.sentences)
        return
    model = Llama.load(folder)
    state = State(c)
    model.forward(tokens, state)
    if c.n_labels:
        return
    try:
        list(model.generate(tokens[:2], seed=1, max_new_tokens=min(4, c.seq_len - 2)))
    except ValueError as error:
        if not any(said in str(error) for said in ("not finite", "context", "max_new_tokens")):
            raise
