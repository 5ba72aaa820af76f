"""A Config is a network or it is refused."""

from dataclasses import FrozenInstanceError, replace

import pytest
from conftest import TINY


def test_derived_widths():
    assert (TINY.head_dim, TINY.kv_dim) == (8, 16)
    assert (TINY.rope_theta, TINY.norm_eps) == (10000.0, 1e-5)


@pytest.mark.parametrize(
    "change, message",
    (
        ({"dim": 0}, "dim must be a positive number, not 0"),
        ({"n_layers": -1}, "n_layers must be a positive number, not -1"),
        ({"norm_eps": float("nan")}, "norm_eps must be a positive number, not nan"),
        ({"rope_theta": float("inf")}, "rope_theta"),
        ({"n_heads": 5}, "n_heads=5 does not divide dim=48"),
        ({"n_kv_heads": 4}, "n_kv_heads=4 does not divide n_heads=6"),
        ({"n_heads": 16, "n_kv_heads": 16}, "dim / n_heads = 3 is odd"),
    ),
)
def test_what_is_no_network(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_a_head_of_a_width_of_its_own():
    config = replace(TINY, head_dim=10, rotary_dim=4, rope_halves=1)
    assert (config.q_dim, config.kv_dim, config.rotary_dim) == (60, 20, 4)
    for change, message in (
        ({"rotary_dim": 12}, "rotary_dim=12 is more than head_dim=10"),
        ({"rotary_dim": 3}, "rotary_dim = 3 is odd"),
        ({"head_dim": -1}, "head_dim must be a positive number, not -1"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(config, **change)


def test_frozen():
    with pytest.raises(FrozenInstanceError):
        TINY.dim = 1
