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
from llama2np.lens import labels
from llama2np.plot import attention_maps

plt.rcParams["figure.dpi"] = 80
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
figure = attention_maps(
    [attention[head] for head in heads],
    labels(model.tokenizer, tokens),
    [f"layer {layer}, head {head}" for layer, head in heads],
    columns=c.n_heads,
)
figure

# %% [markdown]
# Some patterns come again and again, in models of any size:
#
# - a line just below the diagonal: a head that looks at the **token before**;
# - a dark first column: a head that rests. Shares have to sum to 1, so a head that finds nothing
#   puts them on `<s>`, whose value changes little;
# - scattered dots: something that depends on what the tokens *are*.
#
# ## Count
#
# A sentence is an anecdote. So let us measure over whole stories how much of its attention each
# head gives to the token before, and how much to `<s>`.

# %%
with open("stories.txt", encoding="utf-8") as file:
    stories = file.read().split("\n\n")
scores = []
for story in stories:
    trace = Trace("attention")
    model.with_hooks(trace).forward(model.tokenizer.encode(story), model.new_state())
    attention = trace["attention"][:, :, 1:]  # without <s> as one who looks: it has no choice
    before = attention.diagonal(axis1=2, axis2=3)  # row i is token i + 1
    scores.append((before.mean(-1), attention[..., 0].mean(-1)))
before, first = np.mean(scores, axis=0)
print("attention", attention.shape, "-> scores", before.shape, "(n_layers, n_heads)")

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
print("induction", induction.shape)

# %%
figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.6), layout="constrained")
scores = {"token before": before, "first token": first, "induction": induction}
for axis, (name, score) in zip(axes, scores.items(), strict=True):
    axis.imshow(score, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (layer, head), value in np.ndenumerate(score):
        colour = "white" if value > 0.6 else "black"
        axis.text(head, layer, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    axis.set(title=name, xlabel="head", xticks=range(c.n_heads), yticks=range(c.n_layers))
axes[0].set_ylabel("layer")
plt.show()
for name, score in scores.items():
    layer, head = np.unravel_index(score.argmax(), score.shape)
    print(f"{name:<13} most in layer {layer}, head {head}: {score.max():.0%} of its attention")

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

# %% [markdown]
# ## Switch it off
#
# What a head looks at does not say that anybody listens. An `Edit` changes an array on its way:
# here it sets what one head has gathered to zero, before `wo` mixes it into the stream. Then we
# measure how much worse the model foretells the stories.


# %%
def cost(model):
    """What a token of the stories costs, in nats."""
    found = [evaluate(model, story) for story in stories]
    return sum(x.nats for x in found) / sum(x.tokens for x in found)


def without(layer, head):
    """The model in which that head is silent."""

    def silence(mixed, place):
        mixed[:, head] = 0  # mixed: (T, n_heads, head_dim)

    return model.with_hooks(Edit("mixed", silence, layer))


whole = cost(model)
loss = np.array([cost(without(*head)) for head in heads]).reshape(before.shape) - whole
figure, axis = plt.subplots(figsize=(4, 2.6), layout="constrained")
axis.imshow(loss, cmap="Reds", vmin=0, aspect="auto")
for (layer, head), value in np.ndenumerate(loss):
    colour = "white" if value > 0.6 * loss.max() else "black"
    axis.text(head, layer, f"{value:+.2f}", ha="center", va="center", fontsize=8, color=colour)
axis.set(xlabel="head", ylabel="layer", xticks=range(c.n_heads), yticks=range(c.n_layers))
axis.set_title("nats per token lost without the head", fontsize=10)
plt.show()
print(f"with all heads {whole:.3f} nats per token")

# %%
most = sorted(heads, key=lambda head: -loss[head])[:4]
for head in most:
    told = ", ".join(f"{name} {score[head]:.0%}" for name, score in scores.items())
    print(f"without layer {head[0]}, head {head[1]}: {loss[head]:+.3f}. It gives to the {told}")

# %% [markdown]
# Most heads can be spared one at a time: others do nearly the same. A few cannot, and they are not
# always those whose picture was the prettiest. Looking suggests, counting describes, and switching
# off decides.
#
# The same three lines can ask much more: an `Edit` of `attention` forbids one look instead of all,
# an `Edit` of `resid_post` puts the stream of another sentence in place of this one's.
