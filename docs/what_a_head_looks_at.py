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
# itself. These shares can be drawn, and it is tempting to read a meaning into them. We look first,
# then count, and then do the decisive experiment: switch a head off, and see what is lost.

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
# Rows are the tokens that look, columns the tokens that they look at. Nothing is to the right of
# the diagonal, because a token cannot look at later ones. A row of pictures is a layer. (`llama2np
# attend stories-box -i "..."` draws the same.)

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
# Some patterns occur in models of any size. A line along the diagonal means that the head looks at
# the token itself or at those **just before** it. Scattered dots depend on what the tokens *are*. A
# dark column belongs to a token that all later ones look at, such as the full stop before a
# sentence. A dark first column means that the head has found nothing: shares must sum to 1, so it
# gives them to `<s>`.
#
# ## Count
#
# One sentence proves little. So we measure over whole stories how far back each head looks: what it
# gives to the token itself, to the one before, to the one before that ...

# %%
with open("stories.txt", encoding="utf-8") as file:
    stories = file.read().split("\n\n")


def profile(story, far=12):
    """The mean share of the token d positions back: (n_layers, n_heads, far)."""
    trace = Trace("attention")
    model.with_hooks(trace).forward(model.tokenizer.encode(story), model.new_state())
    attention = trace["attention"][:, :, far:]  # rows with at least `far` tokens before them
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
# In the first layer of this model, a token takes mostly from itself. The second layer looks
# farthest, over the whole story. The layers after it combine the last few tokens.

# %% [markdown]
# Another kind of head is found with a special text: random tokens, and then the same tokens again.
# A reader of "A B ... A" can know that "B" follows only by finding the first "A" and looking at
# *what came after it*. A head that does so is an **induction head** (Olsson et al. 2022): it
# copies, whatever the tokens mean. In this way a model can use a text that it has never seen in
# training.

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
# Does this model copy at all? Its loss on the random tokens tells: the first time they cannot be
# predicted; the second time they can be copied.

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
# That a head looks at something does not mean that the network uses its result. An `Edit` changes
# an array during the pass: here it replaces the result of one head before `wo`. Then we measure how
# much worse the model predicts the stories.


# %%
def cost(model):
    """The mean loss for a token of the stories, in nats."""
    found = [evaluate(model, story) for story in stories]
    return sum(x.nats for x in found) / sum(x.tokens for x in found)


def without(layer, head, put):
    """The model in which the result of that head is always put[layer, head]."""

    def ablate(mixed, place):
        mixed[:, head] = put[layer, head]  # mixed: (T, n_heads, head_dim)

    return model.with_hooks(Edit("mixed", ablate, layer))


whole = cost(model)
print(f"with all heads {whole:.3f} nats per token")


def losses(put):
    """How much greater the loss is without each head: (n_layers, n_heads)."""
    costs = [cost(without(*head, put)) for head in heads]
    return np.reshape(costs, (c.n_layers, c.n_heads)) - whole


# %% [markdown]
# But zero removes too much. A part of a head's result is always the same, wherever it looks. The
# blocks after it rely on this part, and zero removes it, too. So we do the experiment twice: once
# with zero, once with the head's mean over all stories. The mean keeps the constant part, and
# removes only the part that depends *on where the head looks*.

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
# Most heads can be removed one at a time: others do nearly the same. A few cannot, and they are not
# always those with the most interesting picture: here they are the heads of the first layer, whose
# picture was a plain line. Looking suggests, counting describes, and switching off decides, if the
# replacement is chosen with care.
#
# The same three lines can answer many other questions: an `Edit` of `attention` can remove one
# share instead of a whole head, and an `Edit` of `resid_post` can insert the stream of another
# sentence.
