"""The sampler against run.c's rules, spelled out one float32 operation at a time."""

import math
import re
from functools import cache
from itertools import count

import numpy as np
import pytest
from conftest import pairs

from llama2np.decoding.sampler import Sampler

f32 = np.float32
BITS = 20
TEMPERATURES = 0.1, 0.8, 1.0, 3.0
TOP_P = 0, 0.1, 0.5, 0.9, 0.999, 1
VECTORS = {  # the upper halves of run.c's first four random numbers
    1: (0x47E4CE4B, 0xABCFA6A8, 0xB9D10D8F, 0x4DB418A0),
    42: (0x56CE4AB7, 0xC841EB53, 0xCA466BE0, 0xF1ACC733),
    1337: (0x3AF61262, 0x30C5CEDB, 0x4F94DCF3, 0xE714B144),
    133742: (0xB4D0037E, 0x9F67C4B0, 0x89DB8337, 0x8857315B),
    -1: (0xF92CC9E5, 0x8FF484D8, 0x346C95F3, 0xC556CC9C),
}


def run_c_coins(seed):
    """run.c's `random_f32`, draw after draw."""
    state = seed % 2**64
    while True:
        state ^= state >> 12
        state ^= (state << 25) % 2**64
        state ^= state >> 27
        yield f32((state * 0x2545F4914F6CDD1D % 2**64 >> 32) >> 8) / f32(2**24)


def run_c_softmax(logits, temperature):
    scaled = [logit / f32(temperature) for logit in logits]
    top = max(scaled)
    powers = [f32(math.exp(x - top)) for x in scaled]
    total = f32(0)
    for power in powers:
        total += power
    return [power / total for power in powers]


def run_c_multinomial(probabilities, coin):
    cdf = f32(0)
    for i, p in enumerate(probabilities):
        cdf += p
        if coin < cdf:
            return i
    return len(probabilities) - 1


def run_c_top_p(probabilities, top_p, coin):
    cutoff = (f32(1) - top_p) / f32(max(len(probabilities) - 1, 1))  # run.c divides by 0 for one
    kept = [i for i, p in enumerate(probabilities) if p >= cutoff]
    if not kept:  # run.c reads beyond its array
        return probabilities.index(max(probabilities))
    kept.sort(key=lambda i: -probabilities[i])
    total, last = f32(0), len(kept) - 1
    for place, i in enumerate(kept):
        total += probabilities[i]
        if total > top_p:
            last = place
            break
    kept = kept[: last + 1]
    return kept[run_c_multinomial([probabilities[i] for i in kept], coin * total)]


def run_c_choice(probabilities, top_p, coin):
    if 0 < top_p < 1:
        return run_c_top_p(probabilities, f32(top_p), coin)
    return run_c_multinomial(probabilities, coin)


@cache
def random_logits(size, repeated=False):
    """Logits as wide as a trained model's; `repeated`: of few different values."""
    logits = np.random.default_rng(size).normal(scale=3, size=size).astype(f32)
    return np.round(logits) if repeated else logits


@cache
def expected_probabilities(size, temperature, repeated=False):
    return run_c_softmax(random_logits(size, repeated), temperature)


@pytest.mark.compiled
@pytest.mark.parametrize("seed", VECTORS)
def test_draws_are_run_c_s(seed):
    """Among 2**20 equally likely tokens the choice is the draw's upper 20 bits."""
    sampler = Sampler(1.0, 0, seed)
    drawn = [sampler.sample(np.zeros(2**BITS, f32)) for _ in range(4)]
    assert drawn == [word >> 32 - BITS for word in VECTORS[seed]]


@pytest.mark.parametrize("seed", VECTORS)
def test_a_draw_has_24_bits(seed):
    """The sampler's, and those of the oracle below."""
    sampler, coins = Sampler(1.0, 0, seed), run_c_coins(seed)
    expected = [(word >> 8) / 2**24 for word in VECTORS[seed]]
    assert [next(coins) for _ in range(4)] == expected
    assert [sampler._draw() for _ in range(4)] == expected


def test_a_coin_on_the_border_takes_the_token_behind_it():
    """The sum must exceed the coin, not reach it."""
    seed = next(seed for seed in count(1) if next(run_c_coins(seed)) * 2**10 % 1 == 0)
    coin = next(run_c_coins(seed))
    assert Sampler(1.0, 0, seed).sample(np.zeros(2**10, f32)) == coin * 2**10


def check_choices(size, seeds, temperature, top_p):
    probabilities = expected_probabilities(size, temperature)
    for seed in range(1, seeds + 1):
        sampler, coins = Sampler(temperature, top_p, seed), run_c_coins(seed)
        for _ in range(2):
            expected = run_c_choice(probabilities, top_p, next(coins))
            assert sampler.sample(random_logits(size)) == expected


@pytest.mark.parametrize("top_p", TOP_P)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_choices_are_run_c_s(temperature, top_p):
    for size, seeds in ((1, 5), (2, 30), (7, 30), (512, 30)):
        check_choices(size, seeds, temperature, top_p)


@pytest.mark.compiled
@pytest.mark.parametrize("pair", pairs(TEMPERATURES, TOP_P), ids=str)
def test_choices_among_32000_tokens(pair):
    temperature, top_p = pair
    check_choices(32000, 2, temperature, top_p)


@pytest.mark.parametrize("top_p", TOP_P)
@pytest.mark.parametrize("size", [2, 7, 512])
def test_equal_logits_stay_in_order(size, top_p):
    """Among equals the lower token comes first, as in glibc's merge sort."""
    probabilities = expected_probabilities(size, 1.0, repeated=True)
    for seed in range(1, 41):
        expected = run_c_choice(probabilities, top_p, next(run_c_coins(seed)))
        assert Sampler(1.0, top_p, seed).sample(random_logits(size, repeated=True)) == expected


@pytest.mark.parametrize(
    ("chances", "top_p", "possible"),
    [
        ([0.9, 0, 0, 0.1], 0.3, {0}),
        ([0.1, 0, 0, 0.9], 0.3, {3}),
        ([0.4, 0.1, 0.1, 0.4], 0.3, {0}),  # of two equals the first
        ([0.4, 0.1, 0.1, 0.4], 0.5, {0, 3}),
        ([0.25, 0.25, 0.25, 0.25], 0.25, {0, 1}),  # the sum must exceed top_p, not reach it
        ([0.9, 0, 0, 0.1], 1, {0, 3}),
        ([0.9, 0, 0, 0.1], 0, {0, 3}),
    ],
)
def test_only_the_most_probable_take_part(chances, top_p, possible):
    logits = np.log(np.array(chances) + 1e-30).astype(f32)
    assert {Sampler(1.0, top_p, seed).sample(logits) for seed in range(1, 101)} == possible


def test_choices_are_as_frequent_as_they_are_probable():
    logits = np.log(np.array([0.5, 0.2, 0.3], f32))
    sampler = Sampler(1.0, 1, seed=7)
    counts = np.bincount([sampler.sample(logits) for _ in range(10000)], minlength=3)
    assert counts / 10000 == pytest.approx([0.5, 0.2, 0.3], abs=0.015)


def test_where_none_passes_the_cutoff_the_first_is_taken():
    """As where a tiny top_p meets equal logits."""
    assert Sampler(1.0, 1e-6, seed=1).sample(np.zeros(1000, f32)) == 0


@pytest.mark.parametrize("logits", [[0, 2, 2, 1, 2], [-1, -1], [5], [-0.0, 0.0]])
def test_greedy_takes_the_lowest_of_the_best(logits):
    logits = np.array(logits, f32)
    assert Sampler(0, seed=3).sample(logits) == int(np.flatnonzero(logits == logits.max())[0])


def test_greedy_takes_no_draws_and_chance_one_each():
    logits = np.zeros(2**12, f32)
    sampler, coins = Sampler(1.0, 0, 42), run_c_coins(42)
    assert [sampler.sample(logits) for _ in range(9)] == [int(next(coins) * 2**12) for _ in "x" * 9]
    assert {Sampler(0, 0, seed).sample(logits) for seed in range(1, 9)} == {0}


@pytest.mark.parametrize(("temperature", "top_p"), [(0, 0.9), (0.5, 0.9), (2.0, 0)])
def test_logits_are_left_as_they_are(temperature, top_p):
    logits = random_logits(512).copy()
    Sampler(temperature, top_p, 1).sample(logits)
    assert np.array_equal(logits, random_logits(512))


def test_one_sampler_serves_vocabularies_of_any_size():
    sampler, coins = Sampler(1.0, 0.9, 5), run_c_coins(5)
    for size in (7, 512, 2, 512):
        expected = run_c_choice(expected_probabilities(size, 1.0), 0.9, next(coins))
        assert sampler.sample(random_logits(size)) == expected


@pytest.mark.compiled
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_not_finite_are_refused(temperature, bad):
    logits = random_logits(7).copy()
    logits[3] = bad
    with pytest.raises(ValueError, match="not finite"):
        Sampler(temperature).sample(logits)


@pytest.mark.compiled
@pytest.mark.parametrize("temperature", [0, 1])
def test_minus_infinity_is_never_chosen(temperature):
    """A way to forbid tokens; only if all are forbidden is there nothing to choose."""
    logits = np.full(7, -np.inf, f32)
    with pytest.raises(ValueError, match="not finite"):
        Sampler(temperature, seed=1).sample(logits)
    logits[[2, 5]] = 0
    sampler = Sampler(temperature, 0, seed=1)
    assert {sampler.sample(logits) for _ in range(50)} == ({2, 5} if temperature else {2})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("temperature", value) for value in (-1, -1e-9, math.nan, math.inf, -math.inf)],
        *[("top_p", value) for value in (-0.1, 1.1, 90, math.nan, math.inf)],
        *[("seed", value) for value in (2**64, -(2**63) - 1)],
    ],
)
def test_arguments_out_of_range_are_refused_by_name_and_value(name, value):
    with pytest.raises(ValueError, match=re.escape(f"{value}")) as error:
        Sampler(**{name: value})
    assert name in str(error.value)


@pytest.mark.parametrize("temperature", [1e-40, 1e-39, 1e39, 1e300])
def test_a_temperature_beyond_float32_is_refused_or_obeyed(temperature):
    """Very cold takes the best token, very hot any; nothing overflows on the way."""
    try:
        sampler = Sampler(temperature, 0, seed=1)
    except ValueError as error:
        assert "temperature" in str(error)
        return
    logits = np.arange(20, dtype=f32) * 10
    chosen = {sampler.sample(logits) for _ in range(100)}
    assert chosen == {19} if temperature < 1 else len(chosen) > 10


@pytest.mark.parametrize("number", [0, 1, 2, 17])
def test_skip_is_so_many_draws(number):
    skipping, sampling = (Sampler(1.0, 0, 42) for _ in range(2))
    skipping.skip(number)
    for _ in range(number):
        sampling.sample(random_logits(7))
    assert draws(skipping) == draws(sampling)


def draws(sampler):
    """What distinguishes a sampler's stream from all others."""
    return [sampler.sample(np.zeros(2**10, f32)) for _ in range(8)]


def test_equal_seeds_give_equal_choices():
    assert draws(Sampler(1.0, 0, 5)) == draws(Sampler(1.0, 0, 5)) != draws(Sampler(1.0, 0, 6))


@pytest.mark.parametrize("seed", [0, None])
def test_without_a_seed_each_sampler_differs(seed):
    assert draws(Sampler(1.0, 0, seed)) != draws(Sampler(1.0, 0, seed))


@pytest.mark.parametrize(("seed", "same"), [(-1, 2**64 - 1), (-(2**63), 2**63)])
def test_a_negative_seed_counts_down_from_2_to_the_64(seed, same):
    assert draws(Sampler(1.0, 0, seed)) == draws(Sampler(1.0, 0, same))
