"""Logits to a token, with run.c's random generator and the order of its float32 operations."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, MISSING, dataclass, field, fields
from typing import TypedDict, cast

import numpy as np

from llama2np.arguments import function, number, whole, wrong
from llama2np.decoding.logits import (
    add_bias,
    keep_min_p,
    keep_top_k,
    penalize_frequency,
    penalize_repetition,
)

_MASK = 2**64 - 1
_NO_TOKENS = np.zeros(0, np.int64)
_NOT_FINITE = "the model's logits are not finite: its weights are damaged"

# (tokens so far, logits) -> logits. Both arrays are copies, which it may change.
LogitsProcessor = Callable[[np.ndarray, np.ndarray], np.ndarray]


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampler` as keyword arguments, for functions that pass them on."""

    temperature: float | None
    top_p: float | None
    seed: int | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    logits_processor: LogitsProcessor | None


# A field of Sampler, its legal values as a text, and a test of them, which nan does not pass.
_LEGAL: tuple[tuple[str, str, Callable[[float], bool]], ...] = (
    # beyond these temperatures float32 overflows
    ("temperature", "0, or 1e-30 to 1e30", lambda t: t == 0 or 1e-30 <= t <= 1e30),
    ("top_p", "0 to 1", lambda p: 0 <= p <= 1),
    ("top_k", "a whole number of 0 or more", lambda k: k >= 0),
    ("min_p", "0 to 1", lambda p: 0 <= p <= 1),
    ("repetition_penalty", "more than 0 and finite", lambda p: 0 < p < math.inf),
    ("presence_penalty", "a finite number", math.isfinite),
    ("frequency_penalty", "a finite number", math.isfinite),
)


@dataclass(eq=False)
class Sampler:
    """Chooses the next token: the most probable at temperature 0, otherwise at random.

    The options are applied in vLLM's order: logit_bias; repetition, frequency and presence penalty;
    logits_processor; temperature; min_p; top_k; top_p. At temperature 0, those after it have no
    effect. If only temperature, top_p and seed are set, the tokens are the same as run.c's. None
    means the default of a field. Raises ValueError for values out of range.
    """

    temperature: float = 1.0  # 0, or 1e-30 to 1e30
    # keep the most probable tokens that together exceed it (Holtzman 2019); 0 and 1 keep all
    top_p: float = 0.9
    seed: int | None = None  # None and 0 mean a new seed each time
    _: KW_ONLY
    top_k: int = 0  # keep the k most probable tokens; 0 keeps all
    min_p: float = 0.0  # keep tokens at least min_p times as probable as the first; 0 keeps all
    # above 1, tokens of the prompt and of the generated text become less probable
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0  # subtracted from logits of tokens in the generated text
    frequency_penalty: float = 0.0  # the same, once for each occurrence
    # {token: number to add to its logit}; -inf forbids the token
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logits_processor: LogitsProcessor | None = None  # (tokens so far, logits) -> logits

    def __post_init__(self) -> None:
        for part in fields(self):
            if getattr(self, part.name) is None:
                default = part.default if part.default is not MISSING else {}
                setattr(self, part.name, default)
        for name, legal, ok in _LEGAL:
            value = (whole if name == "top_k" else number)(name, getattr(self, name))
            if not ok(value):
                raise ValueError(f"{name} must be {legal}, not {value}")
            setattr(self, name, value)
        self.logit_bias = _checked_bias(self.logit_bias)
        if self.logits_processor is not None:
            function("logits_processor", self.logits_processor, "the tokens so far and the logits")
        if self.seed is not None:
            self.seed = whole("seed", self.seed)
            if not -(2**63) <= self.seed < 2**64:
                raise ValueError(f"seed must fit into 64 bits, not {self.seed}")
        self._random = (self.seed or int.from_bytes(os.urandom(8), "little") | 1) & _MASK
        self._scratch = np.zeros(0, np.float32), np.zeros(0, np.int64)

    def sample(
        self,
        logits: np.ndarray,
        tokens: Sequence[int] | np.ndarray | None = None,
        given: int | None = None,
    ) -> int:
        """Return a token. logits: (vocab_size,) float32, not changed; -inf is never chosen.

        tokens: (n,) int, all tokens of the sequence so far, for the penalties and the processor.
        given: the length of the prompt, which is their beginning. Raises ValueError for logits that
        are nan or inf (damaged weights), and if all tokens are forbidden.
        """
        if not isinstance(logits, np.ndarray) or logits.ndim != 1 or not logits.size:
            raise wrong("logits", "an array (vocab_size,)", logits)
        logits = np.ascontiguousarray(logits, np.float32)
        if self._adjusts:
            tokens = _NO_TOKENS if tokens is None else np.asarray(tokens, np.int64)
            logits = self._adjusted(logits, tokens, 0 if given is None else whole("given", given))
        if self.temperature == 0:
            best = int(logits.argmax())  # the first nan, if there is one
            if not math.isfinite(logits[best]):
                raise ValueError(_NOT_FINITE)
            return best
        coin = self._draw()
        if self.min_p > 0:
            logits = keep_min_p(logits, self.min_p, self.temperature)
        if self.top_k > 0:
            logits = keep_top_k(logits, int(self.top_k))
        probabilities, heap = self._scratch  # read once: another thread may replace the pair
        if len(probabilities) != len(logits):
            probabilities, heap = np.zeros(len(logits), np.float32), np.zeros(len(logits), np.int64)
            self._scratch = probabilities, heap
        options = np.float32(self.temperature), np.float32(self.top_p), coin
        token = _drawing()(logits, *options, probabilities, heap)
        if token < 0:
            raise ValueError(_NOT_FINITE)
        return int(token)

    def skip(self, count: int) -> None:
        """Draw and discard `count` random numbers, as run.c's chat does for a prompt's tokens."""
        count = whole("count", count)
        if self.temperature != 0:
            for _ in range(count):
                self._draw()

    def _draw(self) -> np.float32:
        """A float32 in [0, 1): xorshift64* (Marsaglia 2003, Vigna 2016), its upper 24 bits."""
        s = self._random
        s ^= s >> 12
        s ^= s << 25 & _MASK
        s ^= s >> 27
        self._random = s
        return np.float32(((s * 0x2545F4914F6CDD1D & _MASK) >> 40) / 2**24)

    @property
    def greedy(self) -> bool:
        """Whether it always takes the token of the largest logit, and changes no logits before."""
        return self.temperature == 0 and not self._adjusts

    @property
    def _adjusts(self) -> bool:
        """Whether an option before the temperature changes the logits."""
        return bool(
            self.logit_bias
            or self.repetition_penalty != 1
            or self.presence_penalty
            or self.frequency_penalty
            or self.logits_processor
        )

    def _adjusted(self, logits: np.ndarray, tokens: np.ndarray, prompt_length: int) -> np.ndarray:
        if not math.isfinite(logits.max()):
            raise ValueError(_NOT_FINITE)
        if self.logit_bias:
            logits = add_bias(logits, self.logit_bias)
        if self.repetition_penalty != 1:
            logits = penalize_repetition(logits, tokens, self.repetition_penalty)
        if self.presence_penalty or self.frequency_penalty:
            logits = penalize_frequency(
                logits, tokens[prompt_length:], self.presence_penalty, self.frequency_penalty
            )
        if self.logits_processor:
            shape = logits.shape
            logits = np.asarray(self.logits_processor(tokens.copy(), logits.copy()), np.float32)
            if logits.shape != shape:
                raise ValueError(
                    f"logits_processor returned shape {logits.shape}, expected {shape}"
                )
        if not math.isfinite(logits.max()):
            raise ValueError(
                "nothing to choose from: after the sampling options the largest logit is "
                f"{logits.max()}"
            )
        return logits


def _checked_bias(bias: Mapping[int, float]) -> dict[int, float]:
    """A copy of a logit_bias, with Python numbers. Raises ValueError."""
    if not isinstance(bias, Mapping):
        raise wrong("logit_bias", "a dict of tokens and numbers to add to their logits", bias)
    checked = {}
    for token, value in bias.items():
        try:
            known = whole("token", token, 0)
        except ValueError:
            raise ValueError(
                f"logit_bias: tokens must be integers of 0 or more, not {token!r}"
            ) from None
        checked[known] = number(f"logit_bias of token {known}", value)
        if not checked[known] < math.inf:
            raise ValueError(f"logit_bias of token {known} must be a number or -inf, not {value}")
    return checked


def _drawing() -> Callable[..., int]:
    """The function that draws a token: the compiled one if the compiled engine is in use."""
    if "llama2np.kernels" in sys.modules:
        from llama2np import kernels

        return cast(Callable[..., int], kernels.sample)
    from llama2np.decoding import drawing

    return drawing.sample
