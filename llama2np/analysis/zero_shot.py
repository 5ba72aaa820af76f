"""Labels for texts from a language model that has not been trained for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from os.path import commonprefix

import numpy as np

from llama2np.llama import Llama

PROMPT = "{text}\nThis is"
_PLACE = "{text}"


def zero_shot(
    model: Llama,
    texts: Iterable[str],
    labels: Sequence[str],
    prompt: str = PROMPT,
    normalize: bool = False,
    progress: Callable[[int], object] = int,
) -> np.ndarray:
    """The log-probabilities of labels as what follows a prompt: (texts, labels) float64.

    Each is the sum over all tokens of " LABEL" after the prompt, in which "{text}" is replaced by
    the text; a text that is too long for the context loses its end. normalize: divide by the number
    of tokens, so that long labels are not at a disadvantage. progress: called with 1 after each
    text. Raises ValueError for fewer than two labels, and for a prompt without {text}.
    """
    if len(set(labels)) < 2 or len(set(labels)) < len(labels):
        raise ValueError(f"expected two or more different labels, found {', '.join(labels)}")
    if _PLACE not in prompt:
        raise ValueError(f"the prompt {prompt!r} has no {_PLACE}")
    found = []
    for text in texts:
        found.append(_scores(model, text, labels, prompt, normalize))
        progress(1)
    return np.array(found).reshape(-1, len(labels))


def _scores(
    model: Llama, text: str, labels: Sequence[str], prompt: str, normalize: bool
) -> list[float]:
    whole = [_tokens(model, text, label, prompt) for label in labels]
    longest = max(map(len, whole))
    while longest > model.config.seq_len and text:
        text = text[: len(text) * model.config.seq_len // (longest + 8)]
        whole = [_tokens(model, text, label, prompt) for label in labels]
        longest = max(map(len, whole))
    # What all have in common is read once. Each has at least one token of its own.
    shared = min(len(commonprefix(whole)), min(map(len, whole)) - 1)
    state, scores = model.new_state(), []
    first = model.forward(whole[0][:shared], state)
    for tokens in whole:
        own, one = tokens[shared:], state.fork()
        logits = first[None]
        if len(own) > 1:
            logits = np.concatenate([logits, model.forward(own[:-1], one, all_logits=True)])
        score = float(_log_softmax(logits)[np.arange(len(own)), own].sum())
        scores.append(score / len(own) if normalize else score)
    return scores


def _tokens(model: Llama, text: str, label: str, prompt: str) -> list[int]:
    return model.tokenizer.encode(f"{prompt.replace(_PLACE, text)} {label}")


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    found: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found
