"""The architectures. Each is described once, by a function that looks like its forward pass.

To add one, write such a function; CONTRIBUTING.md shows how. The methods of Block are in
program.py.
"""

from llama2np.model.config import Config
from llama2np.model.program import Block


def llama(b: Block, c: Config) -> None:
    """Llama (Touvron et al. 2023): RMSNorm, rotary positions, grouped-query attention, SwiGLU."""
    x = b.embed("embedding")
    for b.layer in range(c.n_layers):
        h = b.rmsnorm(x, "attn_norm")
        q, k, v = b.linear(h, "wq", "wk", "wv")
        q, k = b.rope(q, k)
        x = b.add(x, b.linear(b.attention(q, k, v), "wo", name="attn_out"), name="resid_mid")
        h = b.rmsnorm(x, "ffn_norm")
        gate, up = b.linear(h, "w_gate", "w_up")
        y = b.linear(b.swiglu(gate, up), "w_down", name="mlp_out")
        x = b.add(x, y, name="resid_post")
    b.logits(b.rmsnorm(x, "final_norm"), "classifier")
