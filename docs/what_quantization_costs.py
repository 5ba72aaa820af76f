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
# # What quantization costs
#
# Generating a token reads every weight once. So a model whose weights are a quarter of the size is
# about that much faster, if the processor keeps up, and it fits where four times less fits. The
# price is that the weights are no longer quite what training made them. Here we look at what is
# lost: in a weight, in a matrix, in what the model says, and in how well it predicts a text.

# %%
import matplotlib.pyplot as plt
import numpy as np

from llama2np import Llama, Transformer, compare
from llama2np.analysis.lens import labels
from llama2np.model.weights import Dense, Weights

plt.rcParams["figure.dpi"] = 160
model = Llama.load("stories-box")
small = Llama.load("stories-box-q8")

# %% [markdown]
# ## A group of weights
#
# Q8_0 cuts each row of a matrix into groups. A group keeps one float32, its *scale*, and a whole
# number from -127 to 127 for each weight: `weight ≈ number * scale`. The largest weight of a group
# becomes ±127, and the others are rounded to the nearest step.

# %%
original = model.transformer.weights.layers[0].wq.w
matrix = small.transformer.weights.layers[0].wq
group = matrix.q.shape[1] // matrix.scales.shape[1]
print("original", original.shape, original.dtype, f"{original.nbytes:,} bytes")
print("numbers ", matrix.q.shape, matrix.q.dtype, f"{matrix.q.nbytes:,} bytes")
print("scales  ", matrix.scales.shape, matrix.scales.dtype, f"{matrix.scales.nbytes:,} bytes")
print(f"the first 4 of a group of {group}:")
print("  original      ", original[0, :4])
print("  numbers       ", matrix.q[0, :4], "* scale", matrix.scales[0, 0])
print("  what they give", matrix.q[0, :4] * matrix.scales[0, 0])

# %% [markdown]
# The error of a weight is at most half a step, and spread evenly below that. A step is as wide as
# the largest weight of the group asks for: one large weight makes its neighbours coarse. That is
# why groups are small.

# %%
restored = matrix.q * np.repeat(matrix.scales, group, axis=1)
steps = (restored - original) / np.repeat(matrix.scales, group, axis=1)
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.4), layout="constrained")
left.hist(matrix.q.ravel(), bins=64)
left.set(title="the numbers", yticks=[])
right.hist(steps.ravel(), bins=64)
right.set(title="the error, in steps", yticks=[])
plt.show()
relative = np.linalg.norm(restored - original) / np.linalg.norm(original)
print(f"error of the matrix: {relative:.2%} of its size")

# %% [markdown]
# ## What the model says
#
# Small errors add up over the blocks, and some cancel. What counts is the end: the probabilities of
# the next token. Here are both models', token by token of a sentence, and the
# *Kullback-Leibler divergence* of one from the other: the nats (1 nat is 1.44 bits) that one loses
# by expecting what the other says.

# %%
tokens = model.tokenizer.encode("One day, Tom saw a big dog in the park. The dog was sad.")


def log_probabilities(model):
    logits = model.forward(tokens, model.new_state(), all_logits=True).astype(float)
    logits -= logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


p, q = log_probabilities(model), log_probabilities(small)
divergence = (np.exp(p) * (p - q)).sum(1)
print("logits", p.shape, "(T, vocab_size); divergence", divergence.shape)

figure, axis = plt.subplots(figsize=(7, 2.6), layout="constrained")
axis.bar(range(len(tokens)), divergence)
axis.set_xticks(range(len(tokens)), labels(model.tokenizer, tokens), rotation=90)
axis.set(ylabel="nats", title="divergence of what follows each token")
plt.show()

# %% [markdown]
# Where does the most probable token change? Only where two had almost the same probability before.

# %%
for t in np.flatnonzero(p.argmax(1) != q.argmax(1)):
    a, b = labels(model.tokenizer, (p[t].argmax(), q[t].argmax()))
    before = np.exp(p[t].max()), np.exp(p[t, q[t].argmax()])
    print(f"token {t}: {a!r} became {b!r}; they had {before[0]:.3f} and {before[1]:.3f}")
print("the same most probable token:", (p.argmax(1) == q.argmax(1)).sum(), "of", len(tokens))

# %% [markdown]
# ## How well it predicts a text
#
# Perplexity is the effective number of equally likely choices for each next token. `compare` puts
# a text through both models. Ours are a few stories of the kind that the model learned from, but
# which it has never read. (`llama2np perplexity stories-box-q8 --against stories-box --file
# stories.txt` does it on the command line, for the file as one text: there each story comes as a
# surprise after the one before it, so perplexity is higher.)

# %%
with open("stories.txt", encoding="utf-8") as file:
    stories = file.read().split("\n\n")


def measured(one, original=model):
    """Return nats per token, those of the original, their divergence and agreement."""
    found = [compare(one, original, story) for story in stories]
    rows = [
        (x.model.nats_per_token, x.against.nats_per_token, x.divergence, x.agreement) for x in found
    ]
    return np.average(rows, axis=0, weights=[x.model.tokens for x in found])


nats_small, nats, divergence, agreement = measured(small)
print(f"float32  {nats:.4f} nats per token, perplexity {np.exp(nats):.3f}")
print(f"Q8_0     {nats_small:.4f} nats per token, perplexity {np.exp(nats_small):.3f}")
print(f"divergence {divergence:.5f} nats per token, agreement {agreement:.1%}")

# %% [markdown]
# Eight bits cost next to nothing.
#
# ## How far can one go?
#
# A network here is only arrays, so we can try what no file format has: round the same groups to
# fewer bits, put the result in place of the weights, and measure again. (The activations stay
# float32 here; Q8_0 rounds them to 8 bits as well.)


# %%
def rounded(dense, bits):
    """The matrix, its groups rounded to `bits` bits: 2 ** bits - 1 values around 0."""
    groups, most = dense.w.reshape(-1, group), 2 ** (bits - 1) - 1
    scales = np.abs(groups).max(1, keepdims=True) / most + np.float32(1e-30)
    return Dense((np.round(groups / scales) * scales).reshape(dense.w.shape))


def with_bits(bits):
    """The model with all its matrices rounded."""
    w = model.transformer.weights
    matrices = {name: rounded(matrix, bits) for name, matrix in w.matrices.items()}
    return Llama(Transformer(model.config, Weights({**w, **matrices})), model.tokenizer)


bits = (8, 7, 6, 5, 4, 3, 2)
found = np.array([measured(with_bits(n)) for n in bits])  # (7, 4)
for n, (nats_n, _, divergence, agreement) in zip(bits, found, strict=True):
    said = f"perplexity {np.exp(nats_n):8.2f}, divergence {divergence:.5f}"
    print(f"{n} bits: {said}, agreement {agreement:.0%}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.6), layout="constrained")
left.plot(bits, found[:, 2], "o-")
left.set(yscale="log", xlabel="bits", title="divergence, nats per token")
right.plot(bits, found[:, 0], "o-")
right.axhline(nats, color="grey", linestyle=":")
right.set(xlabel="bits", title="nats per token (dotted: float32)")
plt.show()

# %% [markdown]
# Each bit less doubles the step, so the squared error, and with it the divergence, grows about
# fourfold: a straight line on the left. On the right one sees nothing of it for a long time, then
# everything at once. That is the whole secret of quantization: the errors are there from the
# start, but the model does not notice until they are as large as what it wants to say.
#
# How bent the curve is depends on the model. A large one has more room, and bears 4 bits well; a
# tiny one uses every bit it has.
