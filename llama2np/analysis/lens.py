"""The logit lens: the logits of a network if it ended after each of its blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from llama2np.arguments import having
from llama2np.llama import Llama
from llama2np.model.hooks import Trace
from llama2np.text.tokenizer import Tokenizer


def logit_lens(model: Llama, tokens: Sequence[int] | np.ndarray) -> Iterator[np.ndarray]:
    """Yield logits (T, vocab_size) float32 for the embedding, and for the stream after each block.

    They are the final norm and the classifier applied to the residual stream at that place
    (nostalgebraist 2020, "interpreting GPT: the logit lens"). Both were trained only for the
    stream after the last block, whose logits are the network's own. Raises ValueError as
    `Llama.forward` does.
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
    """The pieces in a printable form: a space is "▁", control characters are escaped.

    A token without a piece is "". Bytes that are not UTF-8, of a part of a character, are escaped.
    """
    return [_label(tokenizer, int(token)) for token in tokens]


def spans(tokenizer: Tokenizer, tokens: Sequence[int] | np.ndarray) -> list[tuple[str, int]]:
    """The labels of a text's tokens, with the number of tokens that each stands for.

    It is 1, but for characters whose bytes are spread over several tokens: they have one label.
    """
    found: list[tuple[str, int]] = []
    held: list[int] = []  # tokens that begin a character
    data = b""
    for token in map(int, tokens):
        texts = tokenizer.shown.texts
        data += texts[token] if token < len(texts) else b""
        held.append(token)
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            if error.end == len(data) and error.reason == "unexpected end of data":
                continue
            text = ""
        if len(held) > 1 and text:
            found.append((_printable(text), len(held)))
        else:
            found += [(_label(tokenizer, each), 1) for each in held]
        held, data = [], b""
    return found + [(_label(tokenizer, each), 1) for each in held]


def pieces_of(found: Sequence[tuple[str, int]]) -> list[str]:
    """A label for each token of `spans`: a part of a character is "日 1/3", "日 2/3" ..."""
    numbered = (
        [label] if count == 1 else [f"{label} {i + 1}/{count}" for i in range(count)]
        for label, count in found
    )
    return [piece for pieces in numbered for piece in pieces]


def _label(tokenizer: Tokenizer, token: int) -> str:
    piece = tokenizer.pieces[token]
    if token in tokenizer.ends:
        piece = piece.strip(b"\n")  # llama2.c spells them "\n<s>\n" and "\n</s>\n"
    return _printable(piece.decode("utf-8", "backslashreplace"))


def _printable(text: str) -> str:
    text = text.replace(" ", "▁")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
