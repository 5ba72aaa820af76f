"""OpenAI's options of sampling, and ours, from a request's body to those of `Llama.generate`."""

from __future__ import annotations

from typing import Any

from llama2np.serve.errors import ApiError
from llama2np.serve.fields import Fields

MOST_CHOICES, MOST_STOPS, MOST_LOGPROBS, MOST_BIASED = 128, 16, 20, 10_000
_MOST_TOKENS = 2**31 - 1
_LEAST_TOP_P = 1e-9


def common(fields: Fields, max_tokens: int | None) -> dict[str, Any]:
    """The options that completions and chats share; OpenAI's defaults. Raises ApiError."""
    number, whole = fields.number, fields.whole
    return {
        "max_new_tokens": whole("max_tokens", max_tokens, 0, _MOST_TOKENS),
        "temperature": number("temperature", 1.0, 0, 100),
        # 0 is the best token alone, as for OpenAI; a Sampler takes 0 for all of them, as run.c.
        "top_p": number("top_p", 1.0, 0, 1) or _LEAST_TOP_P,
        "top_k": whole("top_k", 0, 0, _MOST_TOKENS),
        "min_p": number("min_p", 0.0, 0, 1),
        "presence_penalty": number("presence_penalty", 0.0, -100, 100),
        "frequency_penalty": number("frequency_penalty", 0.0, -100, 100),
        "repetition_penalty": number("repetition_penalty", 1.0, 0.01, 100),
        "seed": whole("seed", None, -(2**63), 2**63 - 1),
        "stop": fields.texts("stop", MOST_STOPS),
        "logit_bias": _bias(fields),
    }


def choices(fields: Fields, options: dict[str, Any]) -> list[dict[str, Any]]:
    """The options of each of the `n` choices: they have different seeds."""
    n = fields.whole("n", 1, 1, MOST_CHOICES)
    if fields.get("best_of", n) != n:
        raise ApiError(400, "best_of must be equal to n: all choices are returned", "best_of")
    seed = options["seed"]
    if seed is None:
        return [options] * n
    # A Sampler takes 0 for a new seed each time; here it is a seed as any other.
    return [options | {"seed": (seed + i) or 2**63} for i in range(n)]


def refuse(fields: Fields, *names: str) -> None:
    """Raise an ApiError for a field that would change the answer, but has no effect here."""
    for name in names:
        if fields.get(name):
            raise ApiError(400, f"{name} is not supported by this server", name, "unsupported")


def _bias(fields: Fields) -> dict[int, float]:
    """logit_bias: JSON's keys are texts. -100 and less forbid a token, as OpenAI describes it."""
    value, found = fields.get("logit_bias", {}), {}
    if not isinstance(value, dict) or len(value) > MOST_BIASED:
        raise fields.wrong("logit_bias", f"an object with at most {MOST_BIASED:,} tokens")
    for token, bias in value.items():
        number = isinstance(bias, int | float) and not isinstance(bias, bool)
        if not token.isdecimal() or len(token) > 9 or not number or not -1e30 <= bias <= 1e30:
            raise ApiError(
                400,
                f"logit_bias: expected a token and a number, found {token}: {bias}",
                "logit_bias",
            )
        found[int(token)] = float(bias) if bias > -100 else float("-inf")
    return found
