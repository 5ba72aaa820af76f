"""What happens to logits before a token is drawn, where the answer is obvious."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llama2np.decoding.logits import (
    add_bias,
    keep_min_p,
    keep_top_k,
    log_softmax,
    penalize_frequency,
    penalize_repetition,
    top_tokens,
)

f32 = np.float32
NEVER = f32(-math.inf)
finite = st.floats(-50, 50, width=32)
some_logits = arrays(f32, st.integers(1, 40), elements=finite)


def row(*values):
    return np.array(values, f32)


def test_bias_is_added():
    assert add_bias(row(1, 2, 3), {0: 5, 2: -0.5}).tolist() == [6, 2, 2.5]
    assert add_bias(row(1, 2), {1: -math.inf}).tolist() == [1, -math.inf]
    with pytest.raises(ValueError, match="logit_bias has token 2, the vocabulary ends at 1"):
        add_bias(row(1, 2), {2: 1})


def test_repetition_divides_what_is_positive_and_multiplies_what_is_not():
    assert penalize_repetition(row(4, -4, 4, 0), [0, 1, 3, 1], 2).tolist() == [2, -8, 4, 0]
    assert penalize_repetition(row(4, -4), [], 2).tolist() == [4, -4]


def test_presence_counts_once_and_frequency_each_time():
    tokens = [0, 2, 2, 2]
    assert penalize_frequency(row(1, 1, 1), tokens, presence=0.5).tolist() == [0.5, 1, 0.5]
    assert penalize_frequency(row(1, 1, 1), tokens, frequency=0.5).tolist() == [0.5, 1, -0.5]
    assert penalize_frequency(row(1, 1, 1), tokens, 1, -2).tolist() == [2, 1, 6]


def test_top_k_keeps_the_largest_and_what_equals_the_last_of_them():
    assert keep_top_k(row(1, 4, 2, 3), 2).tolist() == [NEVER, 4, NEVER, 3]
    assert keep_top_k(row(1, 4, 3, 3), 2).tolist() == [NEVER, 4, 3, 3]
    assert keep_top_k(row(1, 4), 9).tolist() == [1, 4]


def test_min_p_is_a_share_of_the_most_probable():
    logits = np.log(row(0.5, 0.26, 0.2, 0.04))
    kept = keep_min_p(logits, 0.5) > NEVER
    assert kept.tolist() == [True, True, False, False]
    # At temperature 1/2 the shares are squared: 0.26 / 0.5 becomes 0.27.
    assert (keep_min_p(logits, 0.5, 0.5) > NEVER).tolist() == [True, False, False, False]
    assert (keep_min_p(logits, 1) > NEVER).tolist() == [True, False, False, False]


def test_log_softmax_is_the_logarithm_of_probabilities():
    assert np.exp(log_softmax(np.log(row(1, 2, 5)))) == pytest.approx([1 / 8, 2 / 8, 5 / 8])
    assert log_softmax(row(1e4, 0)).tolist() == [0, -1e4]
    assert log_softmax(np.zeros((2, 3, 4), f32)) == pytest.approx(math.log(1 / 4))


@given(some_logits, st.integers(1, 50))
def test_top_k_keeps_so_many_at_least_and_none_that_is_smaller(logits, k):
    kept = keep_top_k(logits, k) > NEVER
    assert kept.sum() >= min(k, len(logits))
    assert (logits[kept].min() > logits[~kept]).all()
    assert (logits > logits[kept].min()).sum() < k


@given(some_logits, st.floats(0.01, 1), st.floats(0.1, 5))
def test_min_p_keeps_by_probability(logits, min_p, temperature):
    kept = keep_min_p(logits, min_p, temperature) > NEVER
    shares = np.exp((logits.astype(float) - logits.max()) / temperature)
    assert kept[shares > min_p * 1.001].all() and not kept[shares < min_p * 0.999].any()


@given(arrays(f32, st.integers(1, 40), elements=st.integers(-3, 3)), st.integers(0, 50))
def test_the_top_tokens_are_those_of_a_whole_sort(logits, count):
    assert top_tokens(logits, count).tolist() == np.argsort(-logits, kind="stable")[:count].tolist()


@given(some_logits)
def test_probabilities_add_up_to_one(logits):
    assert np.exp(log_softmax(logits)).sum() == pytest.approx(1)


@given(some_logits, st.lists(st.integers(0, 0)), st.floats(0.5, 2))
def test_nobody_changes_what_it_is_given(logits, tokens, number):
    before = logits.copy()
    for changed in (
        add_bias(logits, {0: number}),
        penalize_repetition(logits, tokens, number),
        penalize_frequency(logits, tokens, number, number),
        keep_min_p(logits, min(number, 1)),
        keep_top_k(logits, 1),
    ):
        assert changed.dtype == f32 and not np.shares_memory(changed, logits)
    assert np.array_equal(logits, before)
