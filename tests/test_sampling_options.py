"""The options of Sampler beyond run.c's, on distributions whose answer is obvious."""

import math
from dataclasses import fields

import numpy as np
import pytest

from llama2np.decoding.sampler import Sampler, SamplingOptions

f32 = np.float32
FOUR = np.log(np.array([0.4, 0.3, 0.2, 0.1], f32))


def possible(logits=FOUR, tokens=(), given=0, **options):
    """The tokens that some seed chooses."""
    options = {"top_p": 0, **options}
    tokens = np.array(tokens, np.int64)
    return {Sampler(seed=s, **options).sample(logits, tokens, given) for s in range(1, 301)}


def test_without_options_all_are_possible():
    assert possible() == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "k, expected", [(1, {0}), (2, {0, 1}), (4, {0, 1, 2, 3}), (99, {0, 1, 2, 3})]
)
def test_top_k(k, expected):
    assert possible(top_k=k) == expected


def test_top_k_leaves_the_odds_between_those_it_keeps():
    sampler = Sampler(top_p=0, seed=3, top_k=2)
    counts = np.bincount([sampler.sample(FOUR) for _ in range(10000)], minlength=4)
    assert counts / 10000 == pytest.approx([4 / 7, 3 / 7, 0, 0], abs=0.015)


@pytest.mark.parametrize(
    "p, expected", [(1, {0}), (0.7, {0, 1}), (0.4, {0, 1, 2}), (0.2, {0, 1, 2, 3})]
)
def test_min_p(p, expected):
    assert possible(min_p=p) == expected


def test_min_p_looks_at_the_distribution_after_the_temperature():
    assert possible(min_p=0.5, temperature=0.5) == {0, 1}  # (3 / 4) ** 2 > 0.5 > (2 / 4) ** 2
    assert possible(min_p=0.5, temperature=10) == {0, 1, 2, 3}


def test_top_p_comes_after_top_k_and_min_p():
    assert possible(top_p=0.5) == {0, 1}
    assert possible(top_p=0.5, top_k=2) == {0}  # 4 / 7 exceeds it alone
    assert possible(top_p=0.5, min_p=0.7) == {0}


def test_logit_bias_adds_and_forbids():
    assert possible(logit_bias={3: 100}) == {3}
    assert possible(logit_bias={0: -100, 1: -math.inf}) == {2, 3}
    assert possible(logit_bias={3: 100}, temperature=0) == {3}


def test_repetition_penalty_looks_at_prompt_and_answer():
    logits = np.array([4, 3.5, 1], f32)
    assert possible(logits, tokens=[0], given=1, repetition_penalty=2, temperature=0) == {1}
    assert possible(logits, tokens=[0, 1], given=1, repetition_penalty=8, temperature=0) == {2}
    assert possible(logits, tokens=[2], given=0, repetition_penalty=0.1, temperature=0) == {2}


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
def test_presence_and_frequency_penalty_look_at_the_answer_alone(name):
    tokens = [0, 0, 1, 2, 2]
    assert possible(tokens=tokens, given=2, **{name: 100}) == {0, 3}
    assert possible(tokens=tokens, given=5, **{name: 100}) == {0, 1, 2, 3}
    assert possible(tokens=tokens, given=0, **{name: -100}) >= {0}


def test_frequency_counts():
    tokens = [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    assert possible(tokens=tokens, frequency_penalty=100) == {1, 3}
    assert possible(tokens=tokens, presence_penalty=100) == {0, 1, 2, 3}


def test_a_processor_has_the_last_word_before_the_temperature():
    seen = []

    def only_the_last(tokens, logits):
        seen.append((tokens.tolist(), logits.tolist()))
        logits[:-1] = -np.inf
        return logits

    before = FOUR.copy()
    options = {"logit_bias": {1: 1.0}, "logits_processor": only_the_last, "temperature": 0}
    assert Sampler(**options).sample(FOUR, np.array([7, 8])) == 3
    assert seen == [([7, 8], [before[0], before[1] + f32(1), before[2], before[3]])]
    assert np.array_equal(FOUR, before)


def test_bias_comes_before_the_penalties():
    """-1 + 3 is positive and halved; the other way round it would be -2 + 3."""
    seen = []
    Sampler(
        0,
        logit_bias={0: 3},
        repetition_penalty=2,
        presence_penalty=0.25,
        logits_processor=lambda tokens, logits: seen.append(logits.tolist()) or logits,
    ).sample(np.array([-1, 0], f32), np.array([0]))
    assert seen == [[0.75, 0]]


@pytest.mark.parametrize("temperature", [0, 1])
def test_if_all_is_forbidden_it_says_so(temperature):
    everything = {token: -math.inf for token in range(4)}
    with pytest.raises(ValueError, match="nothing to choose from"):
        Sampler(temperature, logit_bias=everything).sample(FOUR)
    with pytest.raises(ValueError, match="nothing to choose from"):
        Sampler(temperature, logits_processor=lambda tokens, logits: logits * np.nan).sample(FOUR)
    with pytest.raises(ValueError, match="weights are damaged"):
        Sampler(temperature, logit_bias={0: 1}).sample(FOUR * np.nan)


def test_a_processor_that_returns_something_else_is_refused():
    with pytest.raises(ValueError, match=r"returned shape \(3,\), expected \(4,\)"):
        Sampler(logits_processor=lambda tokens, logits: logits[1:]).sample(FOUR)


def test_a_forbidden_token_is_not_chosen_where_rounding_leaves_the_sum_below_the_coin(monkeypatch):
    logits = np.array([0.0] * 3 + [-math.inf], f32)  # the float32 sum of their thirds is 1
    sampler = Sampler(top_p=0)
    monkeypatch.setattr(sampler, "_draw", lambda: f32(1.0001))
    assert sampler.sample(logits) == 2


@pytest.mark.parametrize("top_p", [0, 0.9])
def test_options_that_do_nothing_leave_the_stream_alone(top_p):
    logits = np.random.default_rng(1).normal(size=(200, 50)).astype(f32)
    idle = {"top_k": 50, "min_p": 1e-30, "logit_bias": {3: 0.0}}
    idle |= {"logits_processor": lambda tokens, logits: logits}
    plain, with_options = Sampler(0.8, top_p, 42), Sampler(0.8, top_p, 42, **idle)
    assert [plain.sample(x) for x in logits] == [with_options.sample(x) for x in logits]


def test_the_typed_names_are_the_fields():
    names = [field.name for field in fields(Sampler)]
    assert list(SamplingOptions.__annotations__) == names


@pytest.mark.parametrize(
    "options, message",
    [
        ({"top_k": -1}, "top_k must be a whole number of 0 or more, not -1"),
        ({"top_k": 2.5}, "top_k must be .* not 2.5"),
        ({"top_k": math.inf}, "top_k must be .* not inf"),
        ({"min_p": 1.5}, "min_p must be 0 to 1, not 1.5"),
        ({"min_p": math.nan}, "min_p must be 0 to 1, not nan"),
        ({"repetition_penalty": 0}, "repetition_penalty must be more than 0 and finite, not 0"),
        ({"presence_penalty": math.inf}, "presence_penalty must be a finite number, not inf"),
        ({"frequency_penalty": math.nan}, "frequency_penalty must be a finite number, not nan"),
        ({"logit_bias": {5: math.inf}}, "logit_bias of token 5 must be a number or -inf, not inf"),
        ({"logit_bias": {-1: 1}}, "tokens must be integers of 0 or more, not -1"),
        ({"logit_bias": {"5": 1}}, "tokens must be integers of 0 or more, not '5'"),
    ],
)
def test_values_out_of_range_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**options)
