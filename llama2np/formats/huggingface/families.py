"""The families of transformers: the name of each tensor, and the architecture that computes it.

A name of ours, such as "wq", belongs to a module of theirs: its "weight" is wq, its "bias" wq.bias.
In a name of a block, {} is the number of the block. The names are those in the files less the
prefix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from llama2np.formats.huggingface.parts import Part, by_head, columns, plus_one, rows
from llama2np.model.config import Config

Names = dict[str, str | Part]


@dataclass(frozen=True, slots=True)
class Family:
    """A model_type of transformers."""

    architecture: str  # in model/architectures.py
    layers: Names  # the tensors of a block
    others: Names  # the tensors that occur once
    head: Names  # those after the final norm (lm_head), which have names without the prefix
    prefix: str = "model"  # of all names but the head's
    ignored: str = r"rotary_emb\.inv_freq"  # a pattern: tensors that are not parameters
    tied: bool = False  # whether the head is the embedding unless config.json says otherwise
    # Our names of the modules that have a bias, for each field of config.json that decides about
    # it; "" for those that always have one. The default of such a field is False, for those in
    # `biased_by_default` True.
    biases: dict[str, str] = field(default_factory=dict)
    biased_by_default: bool = False
    exact: dict[str, str] = field(default_factory=dict)  # names of tensors, not of modules

    def modules(self, config: Config) -> Iterator[tuple[str, str | Part]]:
        """Yield (our name, their module) of each module of a network."""
        yield from self.others.items()
        for i in range(config.n_layers):
            for ours, theirs in self.layers.items():
                if ours.startswith("experts."):
                    for e in range(config.n_experts):
                        name = ours.replace("{}", str(e))
                        yield f"layers.{i}.{name}", str(theirs).format(i, e)
                elif isinstance(theirs, Part):
                    yield f"layers.{i}.{ours}", Part(theirs.name.format(i), theirs.take)
                else:
                    yield f"layers.{i}.{ours}", theirs.format(i)
        yield from self.head.items()


_BIASES = {"attention_bias": "wq wk wv wo", "mlp_bias": "w_gate w_up w_down"}
_QKV_BIASES = {"": "wq wk wv"}
_ALL = "attn_norm wq wk wv wo ffn_norm w_up w_down final_norm"
_ALL_BIASES = {"": _ALL}

_LM_HEAD: Names = {"classifier": "lm_head"}
_TOP: Names = {"embedding": "embed_tokens", "final_norm": "norm"}
_ATTENTION: Names = {
    "attn_norm": "layers.{}.input_layernorm",
    "wq": "layers.{}.self_attn.q_proj",
    "wk": "layers.{}.self_attn.k_proj",
    "wv": "layers.{}.self_attn.v_proj",
    "wo": "layers.{}.self_attn.o_proj",
}
_SWIGLU: Names = {
    "w_gate": "layers.{}.mlp.gate_proj",
    "w_up": "layers.{}.mlp.up_proj",
    "w_down": "layers.{}.mlp.down_proj",
}
_LLAMA: Names = {**_ATTENTION, "ffn_norm": "layers.{}.post_attention_layernorm", **_SWIGLU}
_QK_NORMS: Names = {"q_norm": "layers.{}.self_attn.q_norm", "k_norm": "layers.{}.self_attn.k_norm"}
_EXPERTS: Names = {
    "router": "layers.{}.block_sparse_moe.gate",
    "experts.{}.w_gate": "layers.{}.block_sparse_moe.experts.{}.w1",
    "experts.{}.w_up": "layers.{}.block_sparse_moe.experts.{}.w3",
    "experts.{}.w_down": "layers.{}.block_sparse_moe.experts.{}.w2",
}
_PHI3: Names = {
    **_LLAMA,
    **dict(
        zip(
            ("wq", "wk", "wv"),
            rows("layers.{}.self_attn.qkv_proj", "q_dim", "kv_dim", "kv_dim"),
            strict=True,
        )
    ),
    **dict(
        zip(
            ("w_gate", "w_up"),
            rows("layers.{}.mlp.gate_up_proj", "hidden_dim", "hidden_dim"),
            strict=True,
        )
    ),
}
_PHI2: Names = {
    **_ATTENTION,
    "wo": "layers.{}.self_attn.dense",
    "w_up": "layers.{}.mlp.fc1",
    "w_down": "layers.{}.mlp.fc2",
}
_GPT2: Names = {
    "attn_norm": "h.{}.ln_1",
    **dict(
        zip(
            ("wq", "wk", "wv"),
            columns("h.{}.attn.c_attn", "q_dim", "q_dim", "q_dim"),
            strict=True,
        )
    ),
    "wo": columns("h.{}.attn.c_proj", "dim")[0],
    "ffn_norm": "h.{}.ln_2",
    "w_up": columns("h.{}.mlp.c_fc", "hidden_dim")[0],
    "w_down": columns("h.{}.mlp.c_proj", "dim")[0],
}
_NEOX: Names = {
    "attn_norm": "layers.{}.input_layernorm",
    **dict(zip(("wq", "wk", "wv"), by_head("layers.{}.attention.query_key_value"), strict=True)),
    "wo": "layers.{}.attention.dense",
    "ffn_norm": "layers.{}.post_attention_layernorm",
    "w_up": "layers.{}.mlp.dense_h_to_4h",
    "w_down": "layers.{}.mlp.dense_4h_to_h",
}
_GEMMA_TOP: Names = {"embedding": "embed_tokens", "final_norm": plus_one("norm")}
_GEMMA: Names = {
    **_LLAMA,
    "attn_norm": plus_one("layers.{}.input_layernorm"),
    "ffn_norm": plus_one("layers.{}.post_attention_layernorm"),
}
_GEMMA2: Names = {
    **_GEMMA,
    "post_attn_norm": plus_one("layers.{}.post_attention_layernorm"),
    "ffn_norm": plus_one("layers.{}.pre_feedforward_layernorm"),
    "post_ffn_norm": plus_one("layers.{}.post_feedforward_layernorm"),
}
_GEMMA3: Names = {
    **_GEMMA2,
    "q_norm": plus_one("layers.{}.self_attn.q_norm"),
    "k_norm": plus_one("layers.{}.self_attn.k_norm"),
}
_BERT: Names = {
    "wq": "encoder.layer.{}.attention.self.query",
    "wk": "encoder.layer.{}.attention.self.key",
    "wv": "encoder.layer.{}.attention.self.value",
    "wo": "encoder.layer.{}.attention.output.dense",
    "attn_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "w_up": "encoder.layer.{}.intermediate.dense",
    "w_down": "encoder.layer.{}.output.dense",
    "ffn_norm": "encoder.layer.{}.output.LayerNorm",
}
_BERT_TOP: Names = {
    "embedding": "embeddings.word_embeddings",
    "position_embedding": "embeddings.position_embeddings",
    "type_embedding": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "pooler": "pooler.dense",
}
_BERT_HEAD: Names = {
    "mlm_dense": "cls.predictions.transform.dense",
    "mlm_norm": "cls.predictions.transform.LayerNorm",
    "nsp": "cls.seq_relationship",
    "labels": "classifier",
}

_PLAIN = Family("llama", _LLAMA, _TOP, _LM_HEAD)
_QWEN3: Names = {**_LLAMA, **_QK_NORMS}
FAMILIES: dict[str, Family] = {
    "llama": Family("llama", _LLAMA, _TOP, _LM_HEAD, biases=_BIASES),
    "mistral": _PLAIN,
    "qwen2": Family("llama", _LLAMA, _TOP, _LM_HEAD, biases=_QKV_BIASES),
    "qwen3": Family("llama", _QWEN3, _TOP, _LM_HEAD, biases=_BIASES),
    "mixtral": Family(
        "llama",
        {**_ATTENTION, "ffn_norm": _LLAMA["ffn_norm"], **_EXPERTS},
        *(_TOP, _LM_HEAD),
    ),
    "phi3": Family("llama", _PHI3, _TOP, _LM_HEAD),
    "phi": Family(
        *("phi2", _PHI2, {**_TOP, "final_norm": "final_layernorm"}, _LM_HEAD),
        biases={"": "attn_norm wq wk wv wo w_up w_down final_norm classifier"},
    ),
    "gpt2": Family(
        *("gpt2", _GPT2),
        {"embedding": "wte", "position_embedding": "wpe", "final_norm": "ln_f"},
        _LM_HEAD,
        prefix="transformer",
        ignored=r"h\.\d+\.attn\.(masked_)?bias",  # the causal mask
        tied=True,
        biases=_ALL_BIASES,
    ),
    "gpt_neox": Family(
        *("gpt_neox", _NEOX),
        {"embedding": "embed_in", "final_norm": "final_layer_norm"},
        {"classifier": "embed_out"},
        prefix="gpt_neox",
        ignored=r"layers\.\d+\.attention\.((masked_)?bias|rotary_emb\.inv_freq)",
        biases={
            "": "attn_norm ffn_norm w_up w_down final_norm",
            "attention_bias": "wq wk wv wo",
        },
        biased_by_default=True,
    ),
    "gemma": Family("gemma", _GEMMA, _GEMMA_TOP, _LM_HEAD, tied=True, biases=_BIASES),
    "gemma2": Family("gemma", _GEMMA2, _GEMMA_TOP, _LM_HEAD, tied=True, biases=_BIASES),
    "gemma3_text": Family("gemma", _GEMMA3, _GEMMA_TOP, _LM_HEAD, tied=True, biases=_BIASES),
    "bert": Family(
        *("bert", _BERT, _BERT_TOP, _BERT_HEAD),
        prefix="bert",
        ignored=r"embeddings\.position_ids|cls\.predictions\.decoder\.(weight|bias)",
        tied=True,
        biases={
            "": f"{_ALL} embedding_norm pooler mlm_dense mlm_norm nsp labels",
        },
        exact={"classifier.bias": "cls.predictions.bias"},
    ),
}
