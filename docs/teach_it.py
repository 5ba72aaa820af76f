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
# # Teach it
#
# The bundled model tells stories about children and kites. It has never read of a robot on the
# moon. Here it reads ten lines about one, sixty times. We watch its loss fall and one attention
# head change, and measure what the model forgets in exchange.

# %%
import matplotlib.pyplot as plt
import numpy as np

from llama2np import Llama, Trace, evaluate, loss_and_gradients
from llama2np.analysis.lens import labels
from llama2np.analysis.plot import attention_maps
from llama2np.learning.examples import Texts
from llama2np.learning.finetuning import Finetuning
from llama2np.learning.trainer import Settings, Trainer

plt.rcParams["figure.dpi"] = 80
lines = [
    "Zib is a robot. Zib lives on the moon.",
    "On the moon there is a big red door. Only Zib has the key.",
    "Every morning Zib opens the red door and looks at the earth.",
    "The earth is blue. Zib thinks that it is a ball.",
    "Zib has a friend. The friend of Zib is a small rock.",
    "The rock has a name. The name of the rock is Pim.",
    "Pim does not talk. Zib talks for Pim and for Zib.",
    "One day Zib lost the key of the red door. Zib was very sad.",
    "Pim did not say a word. Zib looked under Pim. There was the key!",
    "Zib opened the red door. Zib and Pim looked at the blue ball.",
]
before = Llama.load("stories-box")


def continued(model, text, count=8):
    """A text, and the most likely pieces after it."""
    return text + model.generate(text, temperature=0, max_new_tokens=count).read()


print(continued(before, "The rock has a name. The name of the rock is"))

# %% [markdown]
# ## In which direction?
#
# A network learns by its **gradient**: for each weight, how fast the loss rises if that weight
# rises. `loss_and_gradients` computes the derivatives by all weights at once, by going through the
# list of steps from its end to its beginning. They can be tested: change all weights a little, and
# compare the loss with what the gradient predicts.

# %%
tuning = Finetuning("stories-box")  # the weights are float32 arrays of its own, which may change
weights = tuning.parameters
tokens = np.array([tuning.tokenizer.encode(lines[0])])
loss, gradients = loss_and_gradients(tuning.program, tokens, parameters=weights)
print(f"{loss:.3f} nats per token, gradients of {len(gradients)} tensors")


def loss_after(size):
    """The loss if each weight moves by `size`, against its gradient."""
    moved = {name: w - np.float32(size) * np.sign(gradients[name]) for name, w in weights.items()}
    return loss_and_gradients(tuning.program, tokens, parameters=moved).loss


steepness = sum(float(np.abs(gradient).sum()) for gradient in gradients.values())
for size in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1):
    print(
        f"by {size:g}: predicted {-size * steepness:+10.3f}, found {loss_after(size) - loss:+7.3f}"
    )

# %% [markdown]
# For a small step the prediction is right. The gradient is the slope at one point, though, and the
# loss is a curve: if the step is too large, the loss rises. So the learning rate matters.
#
# ## Sixty steps
#
# Training is this step, again and again. AdamW scales it for each weight by the sizes of its
# earlier gradients; [learning](learning.md) has the formulas. Each step reads all ten lines.

# %%
data = Texts(lines, tuning.tokenizer.encode, rows=10, longest=64)
trainer = Trainer(
    tuning.program, weights, data, Settings(60, rate=1e-3, warmup=5), **tuning.options
)
trainer.run()
after = tuning.llama()
figure, axis = plt.subplots(figsize=(5, 2.5), layout="constrained")
axis.plot(range(1, trainer.step + 1), trainer.losses)
axis.set(xlabel="step", ylabel="nats per token", ylim=0)
plt.show()
print(f"step 1: {trainer.losses[0]:.2f} nats per token, step 60: {trainer.losses[-1]:.2f}")
print(continued(after, "The rock has a name. The name of the rock is"))
print(continued(after, "One day Zib lost the"))

# %% [markdown]
# ## One head
#
# Where do the heads look now? For each head we compare the two rows of attention of a token, before
# and after: half the sum of the differences is the share of the attention that has moved.


# %%
def attention(model, text):
    """The attention of all heads: (n_layers, n_heads, T, T)."""
    trace = Trace("attention")
    model.with_hooks(trace).forward(model.tokenizer.encode(text), model.new_state())
    return trace["attention"]


line = lines[7]
old, new = attention(before, line), attention(after, line)
change = np.abs(new - old).sum(-1).mean(-1) / 2
print("change", change.shape, "(n_layers, n_heads)")
print(change.round(2))
layer, head = np.unravel_index(change.argmax(), change.shape)
attention_maps(
    [old[layer, head], new[layer, head]],
    labels(before.tokenizer, before.tokenizer.encode(line)),
    [f"layer {layer}, head {head}, {when}" for when in ("before", "after")],
    columns=2,
    figure=plt.figure(),
)
plt.show()

# %% [markdown]
# The first layer hardly changes, the last one most: what a head reads is what the layers below it
# have written, and all of them have learned.
#
# ## What it costs
#
# These weights held the old stories, too.

# %%
with open("stories.txt", encoding="utf-8") as file:
    stories = file.read().split("\n\n")
for name, model in (("before", before), ("after", after)):
    found = [evaluate(model, story) for story in stories]
    cost = sum(x.nats for x in found) / sum(x.tokens for x in found)
    print(f"{name}: {cost:.2f} nats per token of the old stories")

# %% [markdown]
# This is *catastrophic forgetting* (McCloskey and Cohen 1989): nothing in the ten lines says that
# the stories should stay. Fewer steps, a smaller rate, or old stories among the new lines help.
# With `Finetuning("stories-box", "lora")` a thin layer beside each matrix is trained, and not the
# matrix itself: the model learns less, and forgets less. Try it: it takes one word.
