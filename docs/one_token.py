# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One token, step by step
#
# A language model reads tokens and says, for each of them, what may come next. Here we take one
# token by the hand and walk it through a whole network: every array, every shape, in plain NumPy,
# one or two lines for each step. At each station we compare with what llama2np computed.
#
# The network is a Llama: small enough to look at all of it, built exactly like the large ones.

# %%
import matplotlib.pyplot as plt
import numpy as np

from llama2np import Llama, Trace
from llama2np.analysis.lens import labels

plt.rcParams["figure.dpi"] = 160
model = Llama.load("stories-box")
c = model.config
print(c)

# %% [markdown]
# `dim` is the width of the *residual stream*: the vector that travels with each token through all
# the blocks. Every block reads it and adds something to it, twice: once after looking at the other
# tokens (attention), once after thinking by itself (feed-forward).
#
# ## Text becomes tokens
#
# The first token, `<s>`, only says that a text begins. "▁" stands for a space.

# %%
tokens = model.tokenizer.encode("Lily had a red ball. She liked to play with her red")
pieces = labels(model.tokenizer, tokens)
print(*zip(tokens, pieces, strict=True))

# %% [markdown]
# We let the network read all of them, and keep every array on the way in a `Trace`. Then we follow
# the **last** token, and ask what comes after "her red".

# %%
trace = Trace()
logits = model.with_hooks(trace).forward(tokens, model.new_state())
pos = len(tokens) - 1
weights = model.transformer.weights


def check(name, ours, theirs):
    """Say the shape of an array, and that the network has computed the same."""
    np.testing.assert_allclose(ours, theirs, atol=1e-3, rtol=1e-3)
    print(f"{name:<12}{ours.shape!s:<12} as in the network")


# %% [markdown]
# ## The embedding: a row of a table
#
# A token is a number; the network has a vector for each. That vector is where the residual stream
# `x` of our token begins.

# %%
x = weights.embedding.w[tokens[pos]]
check("x", x, trace["embedding"][pos])
print("the table:", weights.embedding.w.shape, "(vocab_size, dim)")

# %% [markdown]
# ## Attention, first half: query, key, value
#
# Before a block reads the stream, it brings it to a common size: RMSNorm divides by the root of the
# mean square, and multiplies by a learned weight for each of the `dim` values.

# %%
layer = weights.layers[0]


def rmsnorm(x, weight):
    return weight * x / np.sqrt(np.mean(x**2) + c.norm_eps)


h = rmsnorm(x, layer.attn_norm)
check("h", h, trace["attn_norm", 0][pos])

# %% [markdown]
# Three matrices turn it into a **query** (what do I look for?), a **key** (what can I be found by?)
# and a **value** (what do I give to whoever finds me?), and each of these is cut into *heads*,
# that look for different things. Here several query heads share a head of keys and values: that is
# *grouped-query* attention, which makes the cache smaller.

# %%
q = (layer.wq.w @ h).reshape(c.n_heads, c.head_dim)
k = (layer.wk.w @ h).reshape(c.n_kv_heads, c.head_dim)
v = (layer.wv.w @ h).reshape(c.n_kv_heads, c.head_dim)
check("v", v, trace["v", 0][pos])

# %% [markdown]
# ## Where am I? Rotary positions
#
# So far nothing says that our token is the last one. RoPE does it by turning pairs of values of q
# and k, as the hands of clocks: by an angle that grows with the position, fast for the first pair,
# slowly for the last. The product of a turned query and a turned key then depends on *how far
# apart* the two tokens are, and no longer on where they are.

# %%
frequencies = c.rope_theta ** (-np.arange(0, c.head_dim, 2) / c.head_dim)


def turn(heads, pos):
    """heads: (n, head_dim). Pairs of neighbours are complex numbers, and turning is a product."""
    pairs = heads.reshape(len(heads), -1, 2) @ [1, 1j] * np.exp(1j * pos * frequencies)
    return np.stack([pairs.real, pairs.imag], -1).reshape(heads.shape)


q, k = turn(q, pos), turn(k, pos)
check("q", q, trace["q", 0][pos])
check("k", k, trace["k", 0][pos])

figure, axis = plt.subplots(figsize=(7, 2.4), layout="constrained")
for i in range(0, len(frequencies), len(frequencies) // 4):
    axis.plot(np.cos(np.arange(64) * frequencies[i]), label=f"pair {i}")
axis.set(xlabel="position", ylabel="cos of the angle", title="The clocks of RoPE")
axis.legend(loc="right")
plt.show()

# %% [markdown]
# ## Attention, second half: look back and gather
#
# The keys and values of all tokens before ours are in the *KV cache*: nobody computes them again.
# The query of a head is multiplied with each key; softmax turns the products into shares that sum
# to 1; and with these shares the head takes a mean of the values.

# %%
keys, values = trace["k", 0], trace["v", 0]  # (positions, n_kv_heads, head_dim)


def attend(q, keys, values):
    """Return the shares (n_heads, positions) and the gathered values (n_heads, head_dim)."""
    shared = c.n_heads // c.n_kv_heads  # query heads to a head of keys and values
    keys, values = (np.repeat(a.swapaxes(0, 1), shared, axis=0) for a in (keys, values))
    scores = np.einsum("hd,hpd->hp", q, keys) / np.sqrt(c.head_dim)
    shares = np.exp(scores - scores.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return shares, np.einsum("hp,hpd->hd", shares, values)


shares, mixed = attend(q, keys, values)
check("shares", shares, trace["attention", 0][:, pos])
check("mixed", mixed, trace["mixed", 0][pos])

# %% [markdown]
# This is where the heads of the first block look from our token, "red":

# %%
figure, axis = plt.subplots(figsize=(7, 2.6), layout="constrained")
axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
axis.set_xticks(range(len(pieces)), pieces, rotation=90)
axis.set_yticks(range(c.n_heads), [f"head {i}" for i in range(c.n_heads)])
plt.show()

# %% [markdown]
# One more matrix brings what the heads gathered back to the width of the stream, and it is
# **added**. The stream is never replaced: each block only leaves a note in it.

# %%
x = x + layer.wo.w @ mixed.ravel()
check("x", x, trace["resid_mid", 0][pos])

# %% [markdown]
# ## Feed-forward: thinking alone
#
# Normalised again, the stream is widened to `hidden_dim` values by two matrices. One of them is a
# *gate*: silu lets large values through and closes for negative ones, and the product decides which
# of the `hidden_dim` little detectors speak. A third matrix narrows the result, and it is added.

# %%
h = rmsnorm(x, layer.ffn_norm)
gate, up = layer.w_gate.w @ h, layer.w_up.w @ h
mlp = gate / (1 + np.exp(-gate)) * up
check("mlp", mlp, trace["mlp", 0][pos])
x = x + layer.w_down.w @ mlp
check("x", x, trace["resid_post", 0][pos])

# %% [markdown]
# ## All the blocks
#
# That was one block. The others do the same with weights of their own, so here they are in a loop.

# %%
x = weights.embedding.w[tokens[pos]]
for i, layer in enumerate(weights.layers):
    h = rmsnorm(x, layer.attn_norm)
    q = turn((layer.wq.w @ h).reshape(c.n_heads, c.head_dim), pos)
    _, mixed = attend(q, trace["k", i], trace["v", i])
    x = x + layer.wo.w @ mixed.ravel()
    h = rmsnorm(x, layer.ffn_norm)
    gate, up = layer.w_gate.w @ h, layer.w_up.w @ h
    x = x + layer.w_down.w @ (gate / (1 + np.exp(-gate)) * up)
    check(f"x, block {i}", x, trace["resid_post", i][pos])

# %% [markdown]
# The stream of our token, from the embedding (below) up. A column is one of the `dim` values. The
# embedding is a faint beginning; each block writes more, and much of what is written stays.

# %%
stream = np.stack([trace["embedding"][pos], *trace["resid_post"][:, pos]])
figure, axis = plt.subplots(figsize=(7, 2.2), layout="constrained")
limit = np.abs(stream).max() / 2
axis.imshow(stream, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto", origin="lower")
axis.set_yticks(range(len(stream)), ["embedding", *(f"block {i}" for i in range(c.n_layers))])
axis.set(xlabel="value of the residual stream")
plt.show()

# %% [markdown]
# ## And out: a number for each token of the vocabulary
#
# A last norm, and the product with the classifier, which in this network is the embedding table
# again: the stream is compared with each token's vector. Softmax makes probabilities of it.

# %%
found = weights.classifier.w @ rmsnorm(x, weights.final_norm)
check("logits", found, logits)
p = np.exp(found - found.max())
p /= p.sum()
best = np.argsort(-p)[:8]
figure, axis = plt.subplots(figsize=(7, 2.2), layout="constrained")
axis.bar(labels(model.tokenizer, best), p[best])
axis.set(ylabel="probability", title="after “… play with her red”")
plt.show()

# %% [markdown]
# That is all. To write a story, a sampler picks one of these tokens, the network reads it as the
# next one, and its keys and values join the cache.
#
# What the numbers on the way mean is another question: that is where
# [What a head looks at](what_a_head_looks_at.md) begins.
