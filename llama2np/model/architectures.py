"""The architectures. Each is described once, by a function that looks like its forward pass.

To add one, write such a function and put it into ARCHITECTURES, at the end of this file;
CONTRIBUTING.md shows how. The methods of Block are in block.py.
"""

from llama2np.model.block import Block, Describe, Value
from llama2np.model.config import Config


def llama(b: Block, c: Config) -> None:
    """Llama (Touvron et al. 2023): RMSNorm, rotary positions, grouped-query attention, SwiGLU.

    Also Mistral (a window), Mixtral (experts), Qwen2 (biases), Qwen3 (norms of q and k) and Phi-3.
    """
    x = b.embed("embedding")
    for b.layer in range(c.n_layers):
        h = b.rmsnorm(x, "attn_norm")
        x = b.add(x, _attention(b, h), name="resid_mid")
        h = b.rmsnorm(x, "ffn_norm")
        if c.n_experts:
            y = b.experts(h)
        else:
            gate, up = b.linear(h, "w_gate", "w_up")
            y = b.linear(b.swiglu(gate, up), "w_down", name="mlp_out")
        x = b.add(x, y, name="resid_post")
    b.logits(b.rmsnorm(x, "final_norm"), "classifier")


def gemma(b: Block, c: Config) -> None:
    """Gemma 1 (2024), 2 and 3 (Gemma Team 2024, 2025): GeGLU, and from 2 on norms after a branch.

    The weights of the norms are stored less 1; the readers add it.
    """
    x = b.scale(b.embed("embedding", name=""), c.embedding_scale, name="embedding")
    for b.layer in range(c.n_layers):
        y = _attention(b, b.rmsnorm(x, "attn_norm"))
        if b.has("post_attn_norm"):
            y = b.rmsnorm(y, "post_attn_norm")
        x = b.add(x, y, name="resid_mid")
        gate, up = b.linear(b.rmsnorm(x, "ffn_norm"), "w_gate", "w_up")
        y = b.linear(b.geglu(gate, up), "w_down", name="mlp_out")
        if b.has("post_ffn_norm"):
            y = b.rmsnorm(y, "post_ffn_norm")
        x = b.add(x, y, name="resid_post")
    b.logits(b.rmsnorm(x, "final_norm"), "classifier")


def phi2(b: Block, c: Config) -> None:
    """Phi-1, 1.5 and 2 (Gunasekar et al. 2023): attention and feed-forward read the same norm."""
    x = b.embed("embedding")
    for b.layer in range(c.n_layers):
        h = b.layernorm(x, "attn_norm")
        attn = _attention(b, h)
        x = b.add(b.add(x, attn, name="resid_mid"), _feed_forward(b, h), name="resid_post")
    b.logits(b.layernorm(x, "final_norm"), "classifier")


def gpt2(b: Block, c: Config) -> None:
    """GPT-2 (Radford et al. 2019): learned positions, LayerNorm, biases."""
    x = b.embed("embedding", name="token_embedding")
    x = b.add(x, b.embed("position_embedding", "position_embedding", "positions"), "embedding")
    for b.layer in range(c.n_layers):
        h = b.layernorm(x, "attn_norm")
        q, k, v = b.linear(h, "wq", "wk", "wv")
        x = b.add(x, b.linear(b.attention(q, k, v), "wo", name="attn_out"), name="resid_mid")
        x = b.add(x, _feed_forward(b, b.layernorm(x, "ffn_norm")), name="resid_post")
    b.logits(b.layernorm(x, "final_norm"), "classifier")


def gpt_neox(b: Block, c: Config) -> None:
    """GPT-NeoX (Black et al. 2022), Pythia: rotary positions, both branches read the same x."""
    x = b.embed("embedding")
    for b.layer in range(c.n_layers):
        mid = b.add(x, _attention(b, b.layernorm(x, "attn_norm")), name="resid_mid")
        y = _feed_forward(b, b.layernorm(x if c.parallel_residual else mid, "ffn_norm"))
        x = b.add(mid, y, name="resid_post")
    b.logits(b.layernorm(x, "final_norm"), "classifier")


def bert(b: Block, c: Config) -> None:
    """BERT (Devlin et al. 2019), an encoder: attention both ways, a norm after each branch."""
    x = b.embed("embedding", name="token_embedding")
    x = b.add(x, b.embed("position_embedding", "position_embedding", "positions"))
    x = b.add(x, b.embed("type_embedding", "type_embedding", "types"))
    x = b.layernorm(x, "embedding_norm", name="embedding")
    for b.layer in range(c.n_layers):
        q, k, v = b.linear(x, "wq", "wk", "wv")
        y = b.linear(b.attention_both_ways(q, k, v), "wo", name="attn_out")
        x = b.layernorm(b.add(x, y), "attn_norm", name="resid_mid")
        x = b.layernorm(b.add(x, _feed_forward(b, x)), "ffn_norm", name="resid_post")


# The heads of an encoder: small programs of their own, which read its last hidden states.


def bert_pooler(b: Block, c: Config) -> None:
    """A summary of a text: tanh of a linear map of the hidden state of its first token."""
    b.tanh(b.linear(b.input("hidden", c.dim), "pooler"), name="pooled")


def bert_mlm(b: Block, c: Config) -> None:
    """The logits of the token at each position (masked language model)."""
    x = b.gelu(b.linear(b.input("hidden", c.dim), "mlm_dense"))
    b.logits(b.layernorm(x, "mlm_norm"), "classifier")


def bert_pairs(b: Block, c: Config) -> None:
    """From the pooled summary: the logits of "B follows A" and of "it does not"."""
    b.linear(b.input("pooled", c.dim), "nsp")


def bert_labels(b: Block, c: Config) -> None:
    """From the pooled summary: the logits of the labels of a text."""
    b.linear(b.input("pooled", c.dim), "labels")


def _attention(b: Block, h: Value) -> Value:
    """Attention with rotary positions: what it adds to the residual stream."""
    q, k, v = b.linear(h, "wq", "wk", "wv")
    if b.has("q_norm"):
        q, k = b.rmsnorm(q, "q_norm", name="q"), b.rmsnorm(k, "k_norm", name="k")
    queries, k = b.rope(q, k)
    return b.linear(b.attention(queries, k, v), "wo", name="attn_out")


def _feed_forward(b: Block, h: Value) -> Value:
    """Two matrices with a GELU between them: what they add to the residual stream."""
    return b.linear(b.gelu(b.linear(h, "w_up")), "w_down", name="mlp_out")


# By the names that Config.architecture has.
ARCHITECTURES: dict[str, Describe] = {
    each.__name__: each for each in (llama, gemma, phi2, gpt2, gpt_neox, bert)
}
