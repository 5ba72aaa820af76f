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


def test_frozen():
    with pytest.raises(FrozenInstanceError):
        TINY.dim = 1
