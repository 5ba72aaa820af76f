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
# # What a head looks at
#
# An attention head gives each token a row of shares: how much it takes from each token up to
# itself. These shares can be drawn, and they tempt us to read meaning into them. We look first,
# then count, and then do the experiment that decides: switch a head off, and see what is lost.

# %%
import matplotlib.pyplot as plt
import numpy as np

from llama2np import Edit, Llama, Trace, evaluate
from llama2np.analysis.lens import labels
from llama2np.analysis.plot import attention_maps

plt.rcParams["figure.dpi"] = 160
model = Llama.load("stories-box")
c = model.config

# %% [markdown]
# ## Look
#
# Rows are the tokens that look, columns those that are looked at; nothing is right of the
# diagonal, because nobody sees the future. A row of pictures is a layer. (`llama2np attend
# stories-box -i "..."` draws the same.)

# %%
tokens = model.tokenizer.encode("Tom had a dog and a cat. The dog liked Tom, but the cat did not.")
trace = Trace("attention")
model.with_hooks(trace).forward(tokens, model.new_state())
attention = trace["attention"]
print(attention.shape, "(n_layers, n_heads, T, positions)")
heads = list(np.ndindex(c.n_layers, c.n_heads))
attention_maps(
    [attention[head] for head in heads],
    labels(model.tokenizer, tokens),
    [f"layer {layer}, head {head}" for layer, head in heads],
    columns=c.n_heads,
    figure=plt.figure(),
)
plt.show()

# %% [markdown]
# Some patterns come again and again, in models of any size: a line along the diagonal, of heads
# that look at the token itself or at those **just before**; scattered dots, which depend on what
# the tokens *are*; and columns, below a token that all look at, such as the full stop where a
# sentence began. A dark first column is of heads that rest: shares have to sum to 1, so a head that
# finds nothing puts them on `<s>`.
#
# ## Count
#
# A sentence is an anecdote. So let us measure over whole stories how far back each head looks: what
# it gives to the token itself, to the one before, to the one before that ...

# %%
with open("stories.txt", encoding="utf-8") as file:
    stories = file.read().split("\n\n")


def profile(story, far=12):
    """The mean share of the token d positions back: (n_layers, n_heads, far)."""
    trace = Trace("attention")
    model.with_hooks(trace).forward(model.tokenizer.encode(story), model.new_state())
    attention = trace["attention"][:, :, far:]  # rows that have so many before them
    return np.stack(
        [attention.diagonal(far - d, axis1=2, axis2=3).mean(-1) for d in range(far)], axis=-1
    )


distances = np.mean([profile(story) for story in stories], axis=0)
print("distances", distances.shape, "(n_layers, n_heads, far)")

figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
axis.imshow(distances.reshape(len(heads), -1), cmap="Blues", vmin=0, vmax=0.4, aspect="auto")
axis.set_yticks(range(len(heads)), [f"{layer}, {head}" for layer, head in heads], fontsize=7)
axis.set(xlabel="tokens back", ylabel="layer, head", xticks=range(distances.shape[2]))
for layer in range(1, c.n_layers):
    axis.axhline(layer * c.n_heads - 0.5, color="grey", linewidth=0.5)
plt.show()
for layer, near in enumerate(distances.sum(2).mean(1)):
    print(f"layer {layer}: {1 - near:.0%} of its attention goes farther than that")

# %% [markdown]
# The first layer of this model hardly looks around: a token takes from itself. The next looks
# farthest, over the whole story; those above it put the last few tokens together.

# %% [markdown]
# A third kind needs a text made for it. Take random tokens, and say them twice. Whoever reads
# "A B ... A" can know that "B" follows only by finding the first "A" and looking at *what came
# after it*. A head that does so is an **induction head** (Olsson et al. 2022): it copies, whatever
# the tokens mean. It is how a model can use what it reads and never saw in training.

# %%
count = 60
once = np.random.default_rng(0).choice(np.arange(259, c.vocab_size), count, replace=False)
trace = Trace("attention")
twice = np.concatenate([[1], once, once])
model.with_hooks(trace).forward(twice, model.new_state())
looking = np.arange(count + 1, 2 * count + 1)  # the second time
induction = trace["attention"][:, :, looking, looking - count + 1].mean(-1)
layer, head = np.unravel_index(induction.argmax(), induction.shape)
print("induction", induction.shape, f"most in layer {layer}, head {head}: {induction.max():.1%}")

# %% [markdown]
# Does the model copy at all, then? Its loss on the random tokens says so: the first time nobody can
# know them; the second time one could.

# %%
logits = model.forward(twice, model.new_state(), all_logits=True).astype(float)
logits -= logits.max(1, keepdims=True)
p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
costs = -p[np.arange(2 * count), twice[1:]]
print(f"first time {costs[:count].mean():.2f} nats per token, second {costs[count:].mean():.2f};")
print(f"guessing blindly costs {np.log(c.vocab_size):.2f}")
copies = costs[count:].mean() < costs[:count].mean() - 1
print("So it copies." if copies else "So it does not copy: it knows stories, not this game.")

# %% [markdown]
# ## Switch it off
#
# What a head looks at does not say that anybody listens. An `Edit` changes an array on its way:
# here it replaces what one head has gathered, before `wo` mixes it into the stream. Then we measure
# how much worse the model predicts the stories.


# %%
def cost(model):
    """What a token of the stories costs, in nats."""
    found = [evaluate(model, story) for story in stories]
    return sum(x.nats for x in found) / sum(x.tokens for x in found)


def without(layer, head, put):
    """The model in which that head always says the same: put[layer, head]."""

    def ablate(mixed, place):
        mixed[:, head] = put[layer, head]  # mixed: (T, n_heads, head_dim)

    return model.with_hooks(Edit("mixed", ablate, layer))


whole = cost(model)
print(f"with all heads {whole:.3f} nats per token")


def losses(put):
    """What it costs to do without each head: (n_layers, n_heads)."""
    costs = [cost(without(*head, put)) for head in heads]
    return np.reshape(costs, (c.n_layers, c.n_heads)) - whole


# %% [markdown]
# Zero is not nothing, though. What a head says *always*, whatever it looks at, the blocks after it
# have come to rely on, and zero takes that away too. So we do the experiment twice: once with zero,
# once with the head's mean over all stories. The second keeps what it always says, and takes only
# what it says *because of where it looks*.

# %%
trace = Trace("mixed")
for story in stories:
    model.with_hooks(trace).forward(model.tokenizer.encode(story), model.new_state())
means = trace["mixed"].mean(1)
print("mixed", trace["mixed"].shape, "-> means", means.shape, "(n_layers, n_heads, head_dim)")
zero, mean = losses(np.zeros_like(means)), losses(means)
figure, axes = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
for axis, loss, name in ((axes[0], zero, "zero"), (axes[1], mean, "its mean")):
    axis.imshow(loss, cmap="Reds", vmin=0, vmax=zero.max(), aspect="auto")
    for (layer, head), value in np.ndenumerate(loss):
        colour = "white" if value > 0.6 * zero.max() else "black"
        axis.text(head, layer, f"{value:+.2f}", ha="center", va="center", color=colour)
    axis.set(xlabel="head", xticks=range(c.n_heads), yticks=range(c.n_layers))
    axis.set_title(f"nats per token lost with {name}", fontsize=10)
axes[0].set_ylabel("layer")
plt.show()

# %%
for head in sorted(heads, key=lambda head: -mean[head])[:4]:
    near, far = distances[head][:4].sum(), 1 - distances[head].sum()
    print(f"layer {head[0]}, head {head[1]}: {zero[head]:+.3f} and {mean[head]:+.3f}. ", end="")
    print(f"It gives {near:.0%} to the last 4 tokens, {far:.0%} to what is more than 11 back")

# %% [markdown]
# Most heads can be spared one at a time: others do nearly the same. A few cannot, and they need not
# be those whose picture was the prettiest: here they are the first layer's, which drew a plain
# line. Looking suggests, counting describes, and switching off
# decides, if one minds what is put in the place.
#
# The same three lines can ask much more: an `Edit` of `attention` forbids one look instead of all,
# an `Edit` of `resid_post` puts the stream of another sentence in place of this one's.
