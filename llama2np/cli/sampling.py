"""The flags for sampling: the fields of Sampler, with its defaults."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, cast

from llama2np.cli.flags import flag_value, number, text_value
from llama2np.decoding.sampler import Sampler, SamplingOptions
from llama2np.store.catalogue import recommended

_PENALTY = number(float, -100, 100)


def add_flags(add: Callable[..., Any]) -> None:
    """Add run.c's three flags and ours. add: a parser's add_argument."""
    add(
        *("-t", "--temperature"),
        type=number(float, 0, None),
        metavar="T",
        help="0 always chooses the most probable token, higher values choose more randomly "
        f"(default {Sampler.temperature})",
    )
    add(
        *("-p", "--top-p"),
        type=number(float, 0, 1),
        metavar="P",
        help="choose among the most probable tokens that together exceed this probability; "
        f"0 and 1 choose among all (default {Sampler.top_p})",
    )
    add(
        *("-s", "--seed"),
        type=number(int, -(2**63), 2**64 - 1),
        metavar="N",
        help="the same seed gives the same text; 0 takes a new seed each time (default)",
    )
    add(
        "--top-k",
        type=number(int, 0, None),
        metavar="K",
        help="choose among the K most probable tokens (default 0: all)",
    )
    add(
        "--min-p",
        type=number(float, 0, 1),
        metavar="P",
        help="choose among tokens at least P times as probable as the most probable one "
        "(default 0: all)",
    )
    add(
        "--repetition-penalty",
        type=number(float, 0.01, 100),
        metavar="X",
        help="above 1, tokens of the prompt and of the generated text become less probable "
        "(default 1)",
    )
    add(
        "--presence-penalty",
        type=_PENALTY,
        metavar="X",
        help="subtract X from the logits of tokens of the generated text (default 0)",
    )
    add(
        "--frequency-penalty",
        type=_PENALTY,
        metavar="X",
        help="subtract X for each occurrence of a token in the generated text (default 0)",
    )
    add(
        "--logit-bias",
        type=_bias,
        action="append",
        metavar="TOKEN=X",
        help="add X to the logit of the token with this number; -inf forbids it; may be repeated",
    )


def sampling_options(options: argparse.Namespace) -> SamplingOptions:
    """The sampling flags that are set, as keyword arguments for `generate` and `chat`."""
    values = {name: getattr(options, name, None) for name in SamplingOptions.__annotations__}
    if values["logit_bias"] is not None:
        values["logit_bias"] = dict(values["logit_bias"])
    return cast(SamplingOptions, {name: x for name, x in values.items() if x is not None})


def chat_options(options: argparse.Namespace) -> SamplingOptions:
    """`sampling_options` for a chat: for those not set, what the authors of the model recommend."""
    known = recommended(options.model)
    defaults = dict(known.sampling) if known else {}
    return cast(SamplingOptions, {**defaults, **sampling_options(options)})


def _bias(value: str) -> tuple[int, float]:
    token, _, bias = flag_value(value).partition("=")
    try:
        parsed = int(token), float(bias)
    except ValueError:
        parsed = -1, math.nan
    if parsed[0] < 0 or not parsed[1] < math.inf:
        raise argparse.ArgumentTypeError(
            f"expected TOKEN=X, such as 13=-5 or 13=-inf, found {flag_value(value)!r}"
        )
    return parsed


def add_ends(add: Callable[..., Any], max_new_tokens: str) -> None:
    """Add the flags for the end of a text. max_new_tokens: the help of that flag."""
    add("--max-new-tokens", type=number(int, 0, None), metavar="N", help=max_new_tokens)
    add(
        "--stop",
        type=text_value,
        action="append",
        metavar="TEXT",
        help="stop before this text; may be repeated",
    )
