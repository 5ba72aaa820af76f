"""Logits to a token, with run.c's random generator and its order of float32 operations."""

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

# (tokens so far, logits) -> logits. The arrays are its own to change.
LogitsProcessor = Callable[[np.ndarray, np.ndarray], np.ndarray]


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampler` as keyword arguments, for those who pass them on."""

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


# A field of Sampler, what is legal there, and the test for it, which nan does not pass.
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
    """Picks the next token: the best one at temperature 0, else one by chance.

    In this order, vLLM's: logit_bias; repetition, frequency and presence penalty;
    logits_processor; temperature; min_p; top_k; top_p. Those after the temperature do nothing at
    temperature 0. With the defaults of all but the first three, tokens are run.c's for the same
    seed. None stands for the default of any. Raises ValueError for values out of range.
    """

    temperature: float = 1.0  # 0, or 1e-30 to 1e30
    top_p: float = 0.9  # only the likeliest that together exceed it (Holtzman 2019); 0, 1: all
    seed: int | None = None  # None and 0: another one each time
    _: KW_ONLY
    top_k: int = 0  # only so many of the likeliest; 0: all
    min_p: float = 0.0  # only those at least so likely as this share of the likeliest; 0: all
    repetition_penalty: float = 1.0  # above 1: less of what the prompt and the answer have
    presence_penalty: float = 0.0  # subtracted from what the answer has, not the prompt
    frequency_penalty: float = 0.0  # the same, as often as the answer has it
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token: added; -inf forbids it
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
        """Return a token. logits: (vocab_size,) float32, left as they are; -inf is never chosen.

        tokens: (n,) int, all that the sequence has so far, for the penalties and the processor;
        the first `given` of them are its prompt. Raises ValueError for nan and inf, and if there is
        nothing to choose: broken weights, or everything is forbidden.
        """
        if not isinstance(logits, np.ndarray) or logits.ndim != 1 or not logits.size:
            raise wrong("logits", "an array (vocab_size,)", logits)
        logits = np.ascontiguousarray(logits, np.float32)
        if self._adjusts:
            tokens = _NO_TOKENS if tokens is None else np.asarray(tokens, np.int64)
            logits = self._adjusted(logits, tokens, 0 if given is None else whole("given", given))
        if self.temperature == 0:
            best = int(logits.argmax())  # the first nan, where there is one
            if not math.isfinite(logits[best]):
                raise ValueError(_NOT_FINITE)
            return best
        coin = self._draw()
        if self.min_p > 0:
            logits = keep_min_p(logits, self.min_p, self.temperature)
        if self.top_k > 0:
            logits = keep_top_k(logits, int(self.top_k))
        probabilities, heap = self._scratch  # read once: another thread may put another pair there
        if len(probabilities) != len(logits):
            probabilities, heap = np.zeros(len(logits), np.float32), np.zeros(len(logits), np.int64)
            self._scratch = probabilities, heap
        options = np.float32(self.temperature), np.float32(self.top_p), coin
        token = _drawing()(logits, *options, probabilities, heap)
        if token < 0:
            raise ValueError(_NOT_FINITE)
        return int(token)

    def skip(self, count: int) -> None:
        """Let `count` draws pass, as run.c's chat does for the tokens of a prompt."""
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
        """Whether it always takes the likeliest token, and looks at nothing but its logits."""
        return self.temperature == 0 and not self._adjusts

    @property
    def _adjusts(self) -> bool:
        """Whether anything happens to the logits before the temperature."""
        return bool(
            self.logit_bias
            or self.repetition_penalty != 1
            or self.presence_penalty
            or self.frequency_penalty
            or self.logits_processor
        )

    def _adjusted(self, logits: np.ndarray, tokens: np.ndarray, given: int) -> np.ndarray:
        if not math.isfinite(logits.max()):
            raise ValueError(_NOT_FINITE)
        if self.logit_bias:
            logits = add_bias(logits, self.logit_bias)
        if self.repetition_penalty != 1:
            logits = penalize_repetition(logits, tokens, self.repetition_penalty)
        if self.presence_penalty or self.frequency_penalty:
            logits = penalize_frequency(
                logits, tokens[given:], self.presence_penalty, self.frequency_penalty
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
                f"nothing to choose from: the sampling options leave {logits.max()} as best logit"
            )
        return logits


def _checked_bias(bias: Mapping[int, float]) -> dict[int, float]:
    """A copy of a logit_bias, of Python's numbers. Raises ValueError."""
    if not isinstance(bias, Mapping):
        raise wrong("logit_bias", "a dict of tokens and what to add to their logits", bias)
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
    """The function that draws a token: compiled where the compiled engine is in use."""
    if "llama2np.kernels" in sys.modules:
        from llama2np import kernels

        return cast(Callable[..., int], kernels.sample)
    from llama2np.decoding import drawing

    return drawing.sample
