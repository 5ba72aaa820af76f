"""The options of one text, checked: what to generate, how to sample, where to stop."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama2np import advice
from llama2np.arguments import texts, whole
from llama2np.decoding.logits import check_bias
from llama2np.decoding.sampler import Sampler, SamplingOptions

_OTHERS = "max_new_tokens", "stop", "logprobs"


@dataclass(frozen=True)
class Request:
    """A prompt of at least one token, and how it is to be continued.

    ends: the tokens that end the text; None: the tokenizer's. Raises ValueError.
    """

    prompt: list[int]
    sampler: Sampler = field(default_factory=Sampler)
    max_new_tokens: int | None = None
    stop: Sequence[str] = ()
    logprobs: int | None = None
    ends: Collection[int] | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "logprobs"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, whole(name, getattr(self, name), 0))
        object.__setattr__(self, "stop", texts("stop", () if self.stop is None else self.stop))


def request(caller: str, prompt: list[int], options: Mapping[str, Any], vocab_size: int) -> Request:
    """A Request from keyword arguments of `Llama.generate`. Raises ValueError, and TypeError for an
    option that does not exist, in the caller's name.
    """
    others = {name: options[name] for name in _OTHERS if name in options}
    sampling = {name: value for name, value in options.items() if name not in others}
    return Request(prompt, sampler_of(caller, sampling, vocab_size), **others)


def sampler_of(caller: str, options: Mapping[str, Any], vocab_size: int) -> Sampler:
    """A Sampler. Raises ValueError, and for an unknown option TypeError in the caller's name."""
    if unknown := options.keys() - SamplingOptions.__annotations__.keys():
        known, first = SamplingOptions.__annotations__, min(unknown, key=str)
        raise TypeError(
            f"{caller}() has no option {first!r}; those of sampling are {', '.join(known)}"
            f"{advice.did_you_mean(str(first), known)}"
        )
    sampler = Sampler(**options)
    check_bias(sampler.logit_bias, vocab_size)
    return sampler
