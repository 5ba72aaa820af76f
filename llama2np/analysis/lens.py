"""The logit lens: what a network would say if it stopped after each of its blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from llama2np.arguments import having
from llama2np.llama import Llama
from llama2np.model.hooks import Trace
from llama2np.text.tokenizer import Tokenizer


def logit_lens(model: Llama, tokens: Sequence[int] | np.ndarray) -> Iterator[np.ndarray]:
    """Yield logits (T, vocab_size) float32: of the embedding, and of the stream after each block.

    Each is the residual stream put through the final norm and the classifier, which were trained
    for the last of them alone (nostalgebraist 2020, "interpreting GPT: the logit lens"). So the
    last are the network's own. Raises ValueError as `Llama.forward` does.
    """
    having("model", model, "a Llama", "with_hooks")
    trace = Trace("embedding", "resid_post")
    model.with_hooks(trace).forward(tokens, model.new_state())
    for x in (trace["embedding"], *trace["resid_post"]):
        yield model.transformer.unembed(x)


def best(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the best token of each row, and its probability. logits: (T, vocab_size)."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return logits.argmax(-1), 1 / powers.sum(-1)


def labels(tokenizer: Tokenizer, tokens: Sequence[int] | np.ndarray) -> list[str]:
    """The pieces as they can be shown on a line: a space as "▁", control characters escaped.

    "" for a token without a piece.
    """
    return [_label(tokenizer, int(token)) for token in tokens]


def _label(tokenizer: Tokenizer, token: int) -> str:
    if token in tokenizer.ends:
        return "<s>" if token == tokenizer.bos_id else "</s>"
    text = tokenizer.pieces[token].decode("utf-8", "replace").replace(" ", "▁")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
