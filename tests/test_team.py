"""Threads that share steps: each part is done once, nobody waits for who does not come."""

import numba
import numpy as np
import pytest

from llama2np import Llama, kernels
from llama2np.kernels import team
from llama2np.model.transformer import State

STEPS, PARTS = 200, 7


def _go_through(board, member, members, taken):
    """Take parts of all steps. taken: (members, STEPS, PARTS), and a last row for the leader."""
    mine, step = (board, member, members), 1
    for _ in range(STEPS):
        if team.begin(mine, step):
            part = team.take(mine, step, PARTS)
            while part < PARTS:
                taken[member, step - 1, part] += 1
                team.done(mine)
                part = team.take(mine, step, PARTS)
            team.end(mine, PARTS)
            if team.leads(mine):
                # All parts, the others' too, are done, and seen to be.
                taken[members, step - 1, 0] = taken[:members, step - 1].sum()
            step += 1
    team.finish(mine)


def _apart(member, step):
    """What a member finds who is alone with a board on which nothing happens."""
    mine = np.zeros(48, np.int64), member, 2
    came = team.begin(mine, step)
    return came, team.take(mine, step, PARTS)


if not numba.config.DISABLE_JIT:
    _go_through = numba.njit(_go_through)
    _apart = numba.njit(_apart)


@numba.njit(parallel=True)
def together(members, taken):
    board = np.zeros(48, np.int64)
    for i in numba.prange(members):
        _go_through(board, np.int64(i), members, taken)


@pytest.mark.parametrize("members", (1, 2, 3, 8))
def test_each_part_is_done_once_and_before_the_step_ends(members):
    for _ in range(20 if kernels.matmul_few else 2):
        taken = np.zeros((members + 1, STEPS, PARTS), np.int64)
        together(members, taken)
        assert (taken[:members].sum(axis=0) == 1).all()
        assert (taken[members, :, 0] == PARTS).all()


def test_the_leader_needs_nobody():
    assert _apart(0, 1) == (True, 0)


@pytest.mark.parametrize("step", (1, 5))
def test_who_waits_in_vain_goes_home(step, monkeypatch):
    if numba.config.DISABLE_JIT:
        monkeypatch.setattr(team, "_PATIENCE", 99)
    assert _apart(1, step) == (False, PARTS)


def test_who_has_gone_home_takes_no_part():
    assert not _apart(1, 0)[0]


@pytest.mark.compiled
@pytest.mark.parametrize("name", ("stories-box", "stories-box-q8"))
def test_a_network_gives_the_same_bits_to_any_number(name, monkeypatch):
    transformer = Llama.load(name).transformer
    found = []
    for members in (1, 2, 5):
        monkeypatch.setattr(kernels, "members", lambda _work, members=members: members)
        # From position 127 on attention is shared, too.
        found.append(transformer.greedy(5, State(transformer.config), 150))
    for tokens, logits in found[1:]:
        np.testing.assert_array_equal(tokens, found[0][0])
        np.testing.assert_array_equal(logits, found[0][1])
