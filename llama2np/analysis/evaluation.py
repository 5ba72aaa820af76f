"""How well a model predicts a text: perplexity, bits per byte, and how much two models differ."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from llama2np.arguments import function, having, none_means_default, whole, wrong
from llama2np.llama import Llama
from llama2np.model.networks import check_predicts_tokens
from llama2np.text.tokenizer import Tokenizer

_ROWS = 64  # tokens whose logits are in memory at the same time
_CHARACTERS = 8192  # characters that are encoded at once


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The results of a model on a text."""

    tokens: int
    bytes: int  # of the text, in UTF-8
    nats: float  # -log p(text)
    context: int  # tokens in a window
    stride: int  # tokens from one window to the next

    @property
    def nats_per_token(self) -> float:
        """The mean of -log p(token): the cross-entropy, which is the loss in training."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nats_per_token): the effective number of equally likely choices for each token."""
        return math.exp(self.nats_per_token) if self.nats_per_token < 709 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """The cross-entropy in bits per byte, comparable between different tokenizers."""
        return self.nats / math.log(2) / self.bytes


@dataclass(frozen=True, slots=True)
class Comparison:
    """The results of two models on a text, and how much their predictions differ."""

    model: Evaluation
    against: Evaluation
    divergence: float  # KL(against || model), the mean over all tokens, in nats
    agreement: float  # the share of tokens at which both have the same most probable token


@none_means_default
def evaluate(
    model: Llama,
    text: str | Iterable[str],
    *,
    context: int | None = None,
    stride: int | None = None,
    progress: Callable[[int], object] | None = int,
) -> Evaluation:
    """Measure how well `model` predicts `text`, a str or an iterable of its pieces.

    The model reads windows of `context` tokens (default: the model's context). Each window begins
    with BOS, and `stride` tokens (default: half of `context`) after the previous one. A token
    counts once, in the first window that contains it. So it has at least context - stride tokens
    before it, except in the first window. If the tokenizer puts no BOS before texts (GPT-2, Qwen2),
    the first token of the text does not count. `progress` is called with the number of bytes
    evaluated since its last call.
    The memory does not grow with the text, if the text has spaces and the tokenizer is llama2.c's,
    or a sentencepiece model in its layout.
    Raises ValueError for numbers out of range, for an empty text, and for damaged weights.
    """
    return _measure([model], text, context, stride, progress)[0][0]


@none_means_default
def compare(
    model: Llama,
    against: Llama,
    text: str | Iterable[str],
    *,
    context: int | None = None,
    stride: int | None = None,
    progress: Callable[[int], object] | None = int,
) -> Comparison:
    """Measure two models on the same windows; the other arguments are those of `evaluate`.

    For a quantized model and its original, the result is the cost of quantization. Raises
    ValueError, also for models with different vocabularies.
    """
    for name, value in (("model", model), ("against", against)):
        having(name, value, "a Llama", "forward", "tokenizer", "new_state")
    sizes = {model.config.vocab_size, against.config.vocab_size}
    if len(sizes) > 1 or model.tokenizer.pieces != against.tokenizer.pieces:
        raise ValueError("the models have different vocabularies: only bits per byte would compare")
    results, divergence, agreed = _measure([model, against], text, context, stride, progress)
    count = results[0].tokens
    return Comparison(results[0], results[1], divergence / count, agreed / count)


def _measure(
    models: list[Llama],
    text: str | Iterable[str],
    context: int | None,
    stride: int | None,
    progress: Callable[[int], object] | None,
) -> tuple[list[Evaluation], float, int]:
    """The nats of each model, the sum of KL(last || first), and the number of agreements."""
    for model in models:
        having("model", model, "a Llama", "forward", "tokenizer", "new_state")
        check_predicts_tokens(model.config)
    progress = function("progress", progress, "a number of bytes")
    context, stride = _checked(models, context, stride)
    reader = _Reader(models[0].tokenizer, text, progress)
    nats, divergence, agreed, count = np.zeros(len(models)), 0.0, 0, 0
    for tokens, known in _windows(reader, context, stride):
        if not models[0].tokenizer.adds_bos:
            known = max(known, 1)
        targets = iter(tokens[known:])
        for rows in zip(*(_log_probabilities(m, tokens, known) for m in models), strict=True):
            wanted = [next(targets) for _ in rows[0]]
            nats -= [row[np.arange(len(wanted)), wanted].sum() for row in rows]
            count += len(wanted)
            if len(models) > 1:
                first, last = rows
                divergence += float((np.exp(last) * (last - first)).sum())
                agreed += int((first.argmax(1) == last.argmax(1)).sum())
    if not count:
        raise ValueError("there is no text to measure")
    results = [Evaluation(count, reader.bytes, float(n), context, stride) for n in nats]
    return results, divergence, agreed


def _checked(models: list[Llama], context: int | None, stride: int | None) -> tuple[int, int]:
    most = min(model.config.seq_len for model in models)
    context = most if context is None else whole("context", context)
    if not 1 <= context <= most:
        raise ValueError(f"context must be 1 to {most}, the model's, not {context}")
    stride = (context + 1) // 2 if stride is None else whole("stride", stride)
    if not 1 <= stride <= context:
        raise ValueError(f"stride must be 1 to {context}, the context, not {stride}")
    return context, stride


class _Reader:
    """The tokens of a text of any length, which is never in memory as a whole."""

    def __init__(
        self, tokenizer: Tokenizer, text: str | Iterable[str], progress: Callable[[int], object]
    ):
        self.bytes = 0
        self._tokenizer = tokenizer
        self._text = _pieces(text)
        self._progress = progress
        # If no piece has a space in its middle, no token spans "a b": it can be split at the space.
        self._cuts = tokenizer.like_llama2c and not any(
            re.search(rb"[^ ] ", piece) for piece in tokenizer.pieces
        )

    def __iter__(self) -> Iterator[int]:
        held = ""
        for text in self._text:
            for at in range(0, len(text), _CHARACTERS):
                held += text[at : at + _CHARACTERS]
                end = self._last_cut(held) if self._cuts else 0
                if end:
                    yield from self._encoded(held[:end])
                    held = held[end + 1 :]  # without the space: encode adds one
                    self._count(" ")
        if held:
            yield from self._encoded(held)

    def _last_cut(self, text: str) -> int:
        """The index of the last space between two characters; 0 if there is none.

        The character before it must not be a space, nor "▁", which sentencepiece treats as one.
        """
        found = re.search(r"(?s)^.*[^ ▁]( )(?=.)", text)
        return found.start(1) if found else 0

    def _encoded(self, text: str) -> list[int]:
        self._count(text)
        return self._tokenizer.encode(text, bos=False)

    def _count(self, text: str) -> None:
        size = len(text.encode("utf-8", "surrogatepass"))
        self.bytes += size
        self._progress(size)


def _pieces(text: str | Iterable[str]) -> Iterator[str]:
    """The pieces of the text. Each is checked when it is needed, since there may be many."""
    if isinstance(text, bytes) or not isinstance(text, Iterable):
        raise wrong("text", "a str or an iterable of them", text)
    for piece in [text] if isinstance(text, str) else text:
        if not isinstance(piece, str):
            raise wrong("a piece of the text", "a str", piece)
        yield piece


def _windows(tokens: Iterable[int], context: int, stride: int) -> Iterator[tuple[list[int], int]]:
    """Yield windows of at most `context` tokens, each with the number of tokens that the window
    before it has, too.
    """
    held: list[int] = []
    known = 0
    for token in tokens:
        held.append(token)
        if len(held) == context:
            yield held, known
            held = held[stride:]
            known = len(held)
    if len(held) > known:
        yield held, known


def _log_probabilities(model: Llama, tokens: list[int], known: int) -> Iterator[np.ndarray]:
    """Yield log p for each token from tokens[known] to the end, given BOS and those before it.

    Each array is (rows, vocab_size) float64; the last row is for the last token.
    """
    bos = model.tokenizer.bos_id if model.tokenizer.adds_bos else None
    state, read = model.new_state(), tokens[:-1] if bos is None else [bos, *tokens[:-1]]
    first = known - (bos is None)  # the token that is read just before tokens[known]
    if first:
        model.forward(read[:first], state)
    for start in range(first, len(read), _ROWS):
        logits = model.forward(read[start : start + _ROWS], state, all_logits=True).astype(float)
        with np.errstate(invalid="ignore"):
            logits -= logits.max(1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(1, keepdims=True))
        if np.isnan(logits).any():
            raise ValueError("the model's logits are not finite: its weights are damaged")
        yield logits
