"""A network of another format as a folder of transformers: its family, config.json, and tensors.

config.json is read back: if it describes another network than the given one, that is refused, and
the error names the field that differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.huggingface.config_json import config_of
from llama2np.formats.huggingface.families import FAMILIES, Family
from llama2np.formats.huggingface.inverse import put
from llama2np.formats.huggingface.parts import Part
from llama2np.formats.json_file import JsonFile
from llama2np.formats.source import Source, Stored, halved
from llama2np.model.config import Config, RopeScaling
from llama2np.model.weights import described
from llama2np.output import brief

_CLASSES = {
    **{"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "bert": "BertModel"},
    **{"mixtral": "MixtralForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"},
    **{"phi": "PhiForCausalLM", "phi3": "Phi3ForCausalLM", "gpt2": "GPT2LMHeadModel"},
    **{"gpt_neox": "GPTNeoXForCausalLM", "gemma": "GemmaForCausalLM"},
    **{"gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM"},
}
_TANH = "gelu_pytorch_tanh"
_ACTIVATION = {"phi": "gelu_new", "gpt_neox": "gelu", "gemma": _TANH, "gemma2": _TANH}
_ACTIVATION["gemma3_text"] = _TANH


def family_of(source: Source) -> str:
    """The model_type of transformers that computes this network."""
    c, names = source.config, source.tensors
    if c.architecture == "gemma":
        newer = "gemma3_text" if "layers.0.q_norm" in names else "gemma2"
        return newer if "layers.0.post_attn_norm" in names else "gemma"
    if c.architecture != "llama":
        return {"phi2": "phi"}.get(c.architecture, c.architecture)
    scaling = c.rope_scaling
    by_length = scaling is not None and scaling.short_factors != scaling.long_factors
    for kind, fits in (
        ("mixtral", c.n_experts > 0),
        ("qwen3", "layers.0.q_norm" in names),
        ("qwen2", "layers.0.wq.bias" in names and "layers.0.wo.bias" not in names),
        ("phi3", by_length or c.rotary_dim != c.head_dim),
        ("mistral", bool(c.windows)),
    ):
        if fits:
            return kind
    return "llama"


def as_new_folder(source: Source, dtype: str) -> tuple[dict[str, Any], dict[str, Stored]]:
    """config.json, and {name in the file: tensor}. Raises CheckpointError."""
    kind = family_of(source)
    if kind not in FAMILIES:
        raise CheckpointError(f"{source.path}: {kind} cannot be written as a folder")
    source = _in_halves(source)
    described_as = _config_json(source, kind, dtype)
    _check(source, described_as, kind)
    return described_as, dict(_tensors(source, FAMILIES[kind]))


def _in_halves(source: Source) -> Source:
    """The network with the values of a rotary pair half a head apart, as in transformers."""
    c, tensors = source.config, dict(source.tensors)
    if c.rope_halves or c.architecture in ("gpt2", "bert"):
        return source
    for name, tensor in tensors.items():
        if name.endswith((".wq", ".wk", ".wq.bias", ".wk.bias", ".q_norm", ".k_norm")):
            tensors[name] = halved(tensor, c.head_dim)
    if c.rotary_dim != c.head_dim:
        raise CheckpointError(
            f"{source.path}: rotary_dim={c.rotary_dim} of adjacent pairs cannot be "
            "written as a folder yet"
        )
    return replace(source, config=replace(c, rope_halves=1), tensors=tensors)


def _check(source: Source, described_as: dict[str, Any], kind: str) -> None:
    """Raise CheckpointError unless config.json says all about the network."""
    found = config_of(JsonFile.of(described_as, f"{source.path} as config.json"), 0)
    for field in fields(Config):
        was, now = getattr(source.config, field.name), getattr(found, field.name)
        if field.name == "attention_scale":
            usual = source.config.head_dim**-0.5
            was, now = was or usual, now or usual
        if field.name == "rope_scaling" and was and now and was.kind == now.kind == "linear":
            was, now = replace(was, original_len=0), replace(now, original_len=0)  # it has no use
        if was != now:
            raise CheckpointError(
                f"{source.path}: {field.name}={brief(was)} cannot be written as a folder of "
                f"{kind}, which would have {brief(now)}"
            )


# --- config.json ----------------------------------------------------------------------------------


def _config_json(source: Source, kind: str, dtype: str) -> dict[str, Any]:
    c = source.config
    top: dict[str, Any] = {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "torch_dtype": dtype,
    }
    top |= {"vocab_size": c.vocab_size, "tie_word_embeddings": source.tied or kind == "bert"}
    if kind == "gpt2":
        return top | {
            **{"n_embd": c.dim, "n_inner": c.hidden_dim, "n_layer": c.n_layers},
            **{"n_head": c.n_heads, "n_positions": c.seq_len, "layer_norm_epsilon": c.norm_eps},
            "activation_function": "gelu_new",
            "scale_attn_by_inverse_layer_idx": bool(c.attention_scale_by_layer),
        }
    layer_norm = kind in ("phi", "gpt_neox", "bert")
    top |= {
        **{"hidden_size": c.dim, "intermediate_size": c.hidden_dim},
        **{"num_hidden_layers": c.n_layers, "num_attention_heads": c.n_heads},
        "max_position_embeddings": c.seq_len,
        "layer_norm_eps" if layer_norm else "rms_norm_eps": c.norm_eps,
        "hidden_act": _ACTIVATION.get(kind, "silu"),
    }
    if kind == "bert":
        act = "gelu" if c.gelu_exact else "gelu_new"
        return top | {"type_vocab_size": c.n_types, "hidden_act": act}
    top |= _rope(c) | _biases(source, FAMILIES[kind]) | _special(c, kind)
    if kind == "llama":  # Llama 2's; the files of another tokenizer name its own
        top |= {"bos_token_id": 1, "eos_token_id": 2}
    if kind != "gpt_neox":
        top["num_key_value_heads"] = c.n_kv_heads
    if kind not in ("phi", "phi3", "gpt_neox"):  # there it is hidden_size / num_attention_heads
        top["head_dim"] = c.head_dim
    return top


def _special(c: Config, kind: str) -> dict[str, Any]:
    """The fields of single families."""
    made: dict[str, Any] = {}
    window = max(c.windows, default=0) or None
    if kind not in ("llama", "phi", "gpt_neox", "gemma"):
        made["sliding_window"] = window
    if kind in ("qwen2", "qwen3") and window:
        full = [i for i, width in enumerate(c.windows) if not width]
        made |= {"use_sliding_window": True, "max_window_layers": len(full)}
    if kind in ("gemma2", "gemma3_text"):
        made["query_pre_attn_scalar"] = c.head_dim
        if c.attention_scale and c.attention_scale != c.head_dim**-0.5:
            made["query_pre_attn_scalar"] = c.attention_scale**-2
        names = {False: "full_attention", True: "sliding_attention"}
        if window:
            made["layer_types"] = [names[bool(width)] for width in c.windows]
        made["attn_logit_softcapping"] = c.attention_softcap or None
        made["final_logit_softcapping"] = c.logit_softcap or None
    if kind == "gemma3_text":
        made["rope_local_base_freq"] = c.local_rope_theta
    if kind.startswith("gemma"):
        made["hidden_activation"] = _TANH
    if kind == "mixtral":
        made |= {"num_local_experts": c.n_experts, "num_experts_per_tok": c.n_experts_used}
    if kind == "gpt_neox":
        made["use_parallel_residual"] = bool(c.parallel_residual)
    return made


def _biases(source: Source, family: Family) -> dict[str, bool]:
    return {
        field: f"layers.0.{ours.split()[0]}.bias" in source.tensors
        for field, ours in family.biases.items()
        if field
    }


def _rope(c: Config) -> dict[str, Any]:
    """The rotary positions, in the old spelling and in the new one of transformers 5."""
    share = c.rotary_dim / c.head_dim
    made: dict[str, Any] = {"rope_theta": c.rope_theta, "partial_rotary_factor": share}
    inner: dict[str, Any] = {"rope_type": "default"}
    if c.rope_scaling is not None:
        inner = _scaling(c.rope_scaling)
        made["rope_scaling"] = inner
        made["original_max_position_embeddings"] = c.rope_scaling.original_len or c.seq_len
    new = {**inner, "rope_theta": c.rope_theta, "partial_rotary_factor": share}
    return made | {"rope_parameters": new}


def _scaling(s: RopeScaling) -> dict[str, Any]:
    made: dict[str, Any] = {"rope_type": s.kind, "type": s.kind, "factor": s.factor}
    if s.original_len:
        made["original_max_position_embeddings"] = s.original_len
    if s.kind == "llama3":
        made |= {"low_freq_factor": s.low_freq_factor, "high_freq_factor": s.high_freq_factor}
    if s.kind == "yarn":
        made |= {"beta_fast": s.beta_fast, "beta_slow": s.beta_slow, "truncate": s.truncate}
    if s.kind in ("yarn", "longrope"):
        made["attention_factor"] = s.attention_factor
    if s.kind == "longrope":
        made |= {"short_factor": list(s.short_factors), "long_factor": list(s.long_factors)}
    return made


# --- tensors --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Whole:
    """A tensor of theirs that is made of several of ours, or of one that is changed."""

    parts: tuple[tuple[Part, Stored], ...]
    config: Config

    def stored(self) -> Stored:
        """The tensor with its shape. Raises ValueError if the parts do not fit together."""
        height = sum(tensor.shape[0] for _, tensor in self.parts)
        rest = self.parts[0][1].shape[1:]
        for shape in ((height, *rest), (*rest, height)):  # the second: GPT-2's, transposed
            empty = Stored(shape, "float32", 0, lambda start, end: np.empty(0))
            try:
                fit = all(p.take(empty, self.config).shape == t.shape for p, t in self.parts)
            except ValueError:
                continue
            if fit:
                size = sum(tensor.nbytes for _, tensor in self.parts)
                return Stored(shape, "float32", size, partial(_rows, self, shape))
        raise ValueError(f"{self.parts[0][0].name} cannot be made of these tensors")


def _rows(whole: _Whole, shape: tuple[int, ...], start: int, end: int) -> np.ndarray:
    return _values(whole, shape)[start:end]


@lru_cache(maxsize=1)  # a writer reads one tensor after the other, in blocks
def _values(whole: _Whole, shape: tuple[int, ...]) -> np.ndarray:
    made = np.zeros(shape, np.float32)
    for part, tensor in whole.parts:
        put(part, made, np.concatenate(list(tensor.blocks())).reshape(tensor.shape), whole.config)
    return made


def _tensors(source: Source, family: Family) -> Iterator[tuple[str, Stored]]:
    """Yield the tensors by their names in the file. Raises CheckpointError for one without."""
    ours, c = source.tensors, source.config
    used: set[str] = set()
    wholes: dict[str, list[tuple[Part, Stored]]] = {}
    for name, module in family.modules(c):
        for kind, suffix in (("weight", ""), ("bias", ".bias")):
            tensor = ours.get(name + suffix)
            if tensor is None:
                continue
            used.add(name + suffix)
            plain = module.name if isinstance(module, Part) else module
            in_head = name in family.head or c.architecture == "bert"
            theirs = f"{plain}.{kind}" if in_head else f"{family.prefix}.{plain}.{kind}"
            if isinstance(module, Part):
                wholes.setdefault(theirs, []).append((module, tensor))
            else:
                yield theirs, tensor
    if extra := sorted(ours.keys() - used):
        raise CheckpointError(
            f"{source.path}: has {described(extra[0])}, which cannot be written as a folder yet"
        )
    for theirs, parts in wholes.items():
        try:
            yield theirs, _Whole(tuple(parts), c).stored()
        except ValueError as error:
            raise CheckpointError(f"{source.path}: {theirs}: {error}") from None
