"""config.json to Config, for each family, in its old and its new spelling.

Defaults are those of transformers' configuration classes. A setting that would change the
computation in a way that is not implemented is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.huggingface.families import FAMILIES
from llama2np.formats.huggingface.rope_json import Fields, rope
from llama2np.formats.json_file import JsonFile
from llama2np.model.config import Config, DualChunk
from llama2np.output import brief

# Fields that change the computation, and their values for the computation that we do.
_NEUTRAL: Fields = {
    "quantization_config": (None,),
    "quantization": (None,),  # MLX's
    "is_decoder": (False, None, True),
    "add_cross_attention": (False, None),
    "use_bidirectional_attention": (False, None),
    "reorder_and_upcast_attn": (False, None),
    "scale_attn_weights": (True, None),
    "qk_layernorm": (False, None),
    "position_embedding_type": ("absolute", None),
}
# {our activation, the argument of `_decoder`: its names in config.json}
_ACTIVATIONS = {
    "silu": ("silu", "swish"),
    "gelu": ("gelu",),
    "tanh": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
}


def config_of(params: JsonFile, n_labels: int) -> Config:
    """The Config of a folder; n_labels: the outputs of a head that classifies texts, or 0.

    Raises CheckpointError.
    """
    kind = params.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        known = ", ".join(FAMILIES)
        hint = ": its text_config alone could be run" if params.get("text_config") else ""
        raise CheckpointError(
            f"{params.path}: model_type={brief(kind)}, expected one of {known}{hint}"
        )
    for name, neutral in _NEUTRAL.items():
        if params.get(name) not in neutral:
            raise _refused(params, name, neutral[0])
    try:
        fields = _FIELDS[kind](params)
        return Config(architecture=FAMILIES[kind].architecture, n_labels=n_labels, **fields)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{params.path}: {error}") from None


def _refused(params: JsonFile, name: str, expected: object) -> CheckpointError:
    found = brief(params.get(name))
    return CheckpointError(
        f"{params.path}: {name}={found}, expected {expected!r}: not supported yet"
    )


def _decoder(params: JsonFile, **defaults: Any) -> Fields:
    """The fields that Llama and its relatives have in common.

    defaults: what differs from Llama in a family: `activation` and `eps_name`, and the values of
    absent fields: kv_heads, head_dim, seq_len, eps, theta, partial_rotary (in the families that
    rotate a part of a head only).
    """
    heads = params.whole("num_attention_heads")
    dim = params.whole("hidden_size")
    head_dim = params.whole("head_dim", defaults.get("head_dim", 0))
    if not head_dim and dim % heads:
        raise ValueError(f"n_heads={heads} does not divide dim={dim}")
    fields: Fields = {
        "dim": dim,
        "hidden_dim": params.whole("intermediate_size"),
        "n_layers": params.whole("num_hidden_layers"),
        "n_heads": heads,
        "n_kv_heads": _kv_heads(params, heads, defaults.get("kv_heads", heads)),
        "vocab_size": params.whole("vocab_size"),
        "seq_len": params.whole("max_position_embeddings", defaults.get("seq_len", 2048)),
        "norm_eps": params.number(
            defaults.get("eps_name", "rms_norm_eps"), defaults.get("eps", 1e-6)
        ),
        "head_dim": head_dim or dim // heads,
        "rope_halves": 1,
    }
    activation = defaults.get("activation", "silu")
    name = "hidden_activation" if params.get("hidden_activation") else "hidden_act"
    if params.get(name, None) not in (*_ACTIVATIONS[activation], None):
        raise _refused(params, name, _ACTIVATIONS[activation][0])
    return fields | rope(params, fields, defaults)


def _kv_heads(params: JsonFile, heads: int, default: int) -> int:
    """num_key_value_heads, whose null means as many as heads; absent means the default."""
    missing = object()
    absent = params.get("num_key_value_heads", missing) is missing
    return params.whole("num_key_value_heads", default if absent else heads)


def _llama(params: JsonFile) -> Fields:
    _without_window(params)
    return _decoder(params)


def _without_window(params: JsonFile) -> None:
    if params.get("sliding_window") is not None:
        raise _refused(params, "sliding_window", None)


def _mistral(params: JsonFile) -> Fields:
    fields = _decoder(params, kv_heads=8, seq_len=131072)
    return fields | _windows(params, fields, _sliding(params, 4096))


def _sliding(params: JsonFile, default: int) -> int:
    """sliding_window, whose null means that there is no window; absent means the default."""
    missing = object()
    if params.get("sliding_window", missing) is missing:
        return default
    return params.whole("sliding_window", 0)


def _mixtral(params: JsonFile) -> Fields:
    fields = _decoder(params, kv_heads=8, seq_len=131072, eps=1e-5, theta=1e6)
    fields["n_experts"] = params.whole("num_local_experts", 8)
    fields["n_experts_used"] = params.whole("num_experts_per_tok", 2)
    return fields | _windows(params, fields, _sliding(params, 0))


def _qwen(params: JsonFile, **defaults: Any) -> Fields:
    fields = _decoder(params, kv_heads=32, seq_len=32768, **defaults)
    if params.flag("use_sliding_window"):
        window, full = _sliding(params, 4096), params.get("max_window_layers", 28)
        if not isinstance(full, int) or isinstance(full, bool):
            raise _refused(params, "max_window_layers", 28)
        each = [window if i >= full else 0 for i in range(_layers(fields))]
        fields |= _windows(params, fields, window, each)
    if (chunks := params.get("dual_chunk_attention_config")) is not None:
        fields["dual_chunk"] = _dual_chunk(params, chunks)
    return fields


def _qwen2(params: JsonFile) -> Fields:
    return _qwen(params)


def _qwen3(params: JsonFile) -> Fields:
    return _qwen(params, head_dim=128)


def _dual_chunk(params: JsonFile, chunks: object) -> DualChunk:
    """vLLM's fields; `scaling` is ours."""
    if not isinstance(chunks, dict):
        raise _refused(params, "dual_chunk_attention_config", None)
    inner = params.inner("dual_chunk_attention_config")
    return DualChunk(
        inner.whole("chunk_size", 8192),
        inner.whole("local_size", 1024),
        # 0, which vLLM takes for none, is no whole number above 0
        inner.whole("original_max_position_embeddings", 0)
        if chunks.get("original_max_position_embeddings")
        else 0,
        str(chunks.get("scaling", "keys")),
    )


def _phi3(params: JsonFile) -> Fields:
    fields = _decoder(params, seq_len=4096, eps=1e-5, partial_rotary=1)
    return fields | _windows(params, fields, _sliding(params, 0))


def _phi(params: JsonFile) -> Fields:
    return _decoder(
        params, eps_name="layer_norm_eps", eps=1e-5, activation="tanh", partial_rotary=0.5
    )


def _gpt_neox(params: JsonFile) -> Fields:
    fields = _decoder(
        params, eps_name="layer_norm_eps", eps=1e-5, activation="gelu", partial_rotary=0.25
    )
    parallel = params.flag("use_parallel_residual", True)
    return fields | {"gelu_exact": 1, "parallel_residual": int(parallel)}


def _gpt2(params: JsonFile) -> Fields:
    dim, heads = params.whole("n_embd"), params.whole("n_head")
    if params.get("activation_function", "gelu_new") not in _ACTIVATIONS["tanh"]:
        raise _refused(params, "activation_function", "gelu_new")
    return {
        "dim": dim,
        "hidden_dim": params.whole("n_inner", 4 * dim),
        "n_layers": params.whole("n_layer"),
        "n_heads": heads,
        "n_kv_heads": heads,
        "vocab_size": params.whole("vocab_size"),
        "seq_len": params.whole("n_positions", 1024),
        "norm_eps": params.number("layer_norm_epsilon", 1e-5),
        "attention_scale_by_layer": int(params.flag("scale_attn_by_inverse_layer_idx")),
    }


def _gemma(params: JsonFile) -> Fields:
    """Gemma 1 computes tanh's GELU, also where config.json says "gelu"."""
    name = "hidden_activation" if params.get("hidden_activation") else "hidden_act"
    tanh = "gelu" if params.get(name) == "gelu" else "tanh"
    fields = _decoder(params, seq_len=8192, head_dim=256, kv_heads=16, activation=tanh)
    return fields | {"embedding_scale": math.sqrt(fields["dim"])}


def _gemma2(params: JsonFile) -> Fields:
    fields = _decoder(params, seq_len=8192, head_dim=256, kv_heads=4, activation="tanh")
    fields |= _gemma_attention(params, fields, caps=(50.0, 30.0))
    window = _sliding(params, 4096)
    each = [0 if i % 2 else window for i in range(_layers(fields))]
    return fields | _windows(params, fields, window, each)


def _gemma3(params: JsonFile) -> Fields:
    fields = _decoder(
        params, seq_len=131072, head_dim=256, kv_heads=4, activation="tanh", theta=1e6
    )
    fields |= _gemma_attention(params, fields, caps=(0.0, 0.0))
    window = _sliding(params, 4096)
    period = params.whole("sliding_window_pattern", params.whole("_sliding_window_pattern", 6))
    each = [window if (i + 1) % period else 0 for i in range(_layers(fields))]
    fields |= _windows(params, fields, window, each)
    local = params.number("rope_local_base_freq", 1e4)
    new = params.get("rope_parameters")
    if isinstance(new, dict) and isinstance(new.get("sliding_attention"), dict):
        inner = params.inner("rope_parameters").inner("sliding_attention")
        if inner.get("rope_type") not in (None, "default"):
            raise _refused(inner, "rope_type", "default")
        local = inner.number("rope_theta", 1e4)
    return fields | {"local_rope_theta": local}


def _gemma_attention(params: JsonFile, fields: Fields, caps: tuple[float, float]) -> Fields:
    scalar = params.number("query_pre_attn_scalar", 256)
    names = "attn_logit_softcapping", "final_logit_softcapping"
    missing = object()
    scores, logits = (
        default if params.get(name, missing) is missing else params.number(name, 0.0)
        for name, default in zip(names, caps, strict=True)
    )
    return {
        "embedding_scale": math.sqrt(fields["dim"]),
        "attention_scale": scalar**-0.5,
        "attention_softcap": scores,
        "logit_softcap": logits,
    }


def _bert(params: JsonFile) -> Fields:
    heads = params.whole("num_attention_heads")
    if params.get("hidden_act", "gelu") not in ("gelu", *_ACTIVATIONS["tanh"]):
        raise _refused(params, "hidden_act", "gelu")
    if params.flag("is_decoder"):
        raise _refused(params, "is_decoder", False)
    return {
        "dim": params.whole("hidden_size"),
        "hidden_dim": params.whole("intermediate_size"),
        "n_layers": params.whole("num_hidden_layers"),
        "n_heads": heads,
        "n_kv_heads": heads,
        "vocab_size": params.whole("vocab_size"),
        "seq_len": params.whole("max_position_embeddings", 512),
        "norm_eps": params.number("layer_norm_eps", 1e-12),
        "n_types": params.whole("type_vocab_size", 2),
        "gelu_exact": int(params.get("hidden_act", "gelu") == "gelu"),
    }


# A function for each model_type of FAMILIES. Phi-1, 1.5 and 2 are of type "phi".
_FIELDS: dict[str, Callable[[JsonFile], Fields]] = {
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "phi": _phi,
    "phi3": _phi3,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "bert": _bert,
}


def _layers(fields: Fields) -> int:
    """The number of layers, for lists of one value each; a Config refuses more."""
    return min(int(fields["n_layers"]), 2**16)


def _windows(
    params: JsonFile, fields: Fields, window: int, each: list[int] | None = None
) -> Fields:
    """The windows of all layers: by layer_types, if there are any, else `each`, else the same."""
    types = params.get("layer_types")
    if types is not None and window:
        if not isinstance(types, list) or not set(map(str, types)) <= {
            "sliding_attention",
            "full_attention",
        }:
            raise _refused(params, "layer_types", ["full_attention", "sliding_attention"])
        each = [window if kind == "sliding_attention" else 0 for kind in types]
    if each is None:
        each = [window] * _layers(fields)
    return {"windows": tuple(each)}
