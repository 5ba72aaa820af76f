"""The flags that say how tokens are chosen: the fields of Sampler, whose defaults they have."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, cast

from llama2np.cli.flags import flag_value, number
from llama2np.decoding.sampler import Sampler, SamplingOptions

_PENALTY = number(float, -100, 100)


def add_flags(add: Callable[..., Any]) -> None:
    """Add run.c's three flags and ours. add: a parser's add_argument."""
    add(
        *("-t", "--temperature"),
        type=number(float, 0, None),
        metavar="T",
        help="0 always takes the likeliest token, more is more daring "
        f"(default {Sampler.temperature})",
    )
    add(
        *("-p", "--top-p"),
        type=number(float, 0, 1),
        metavar="P",
        help="choose among the likeliest tokens that together exceed this probability; "
        f"0 and 1 choose among all (default {Sampler.top_p})",
    )
    add(
        *("-s", "--seed"),
        type=number(int, -(2**63), 2**64 - 1),
        metavar="N",
        help="the same seed gives the same text; 0 is a new one each time (default)",
    )
    add(
        "--top-k",
        type=number(int, 0, None),
        metavar="K",
        help="choose among the K likeliest tokens (default 0: all)",
    )
    add(
        "--min-p",
        type=number(float, 0, 1),
        metavar="P",
        help="choose among tokens at least P times as likely as the likeliest (default 0: all)",
    )
    add(
        "--repetition-penalty",
        type=number(float, 0.01, 100),
        metavar="X",
        help="above 1: make tokens rarer that the prompt or the text has (default 1)",
    )
    add(
        "--presence-penalty",
        type=_PENALTY,
        metavar="X",
        help="subtract X from the logits of tokens that the text has (default 0)",
    )
    add(
        "--frequency-penalty",
        type=_PENALTY,
        metavar="X",
        help="subtract X for each time that the text has the token (default 0)",
    )
    add(
        "--logit-bias",
        type=_bias,
        action="append",
        metavar="TOKEN=X",
        help="add X to the logit of the token of this number; -inf forbids it; may be repeated",
    )


def sampling_options(options: argparse.Namespace) -> SamplingOptions:
    """What was given of these flags, as keyword arguments for `generate` and `chat`."""
    given = {name: getattr(options, name, None) for name in SamplingOptions.__annotations__}
    if given["logit_bias"] is not None:
        given["logit_bias"] = dict(given["logit_bias"])
    return cast(SamplingOptions, {name: x for name, x in given.items() if x is not None})


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
