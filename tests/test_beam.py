"""Beam search against trying everything."""

import itertools

import numpy as np
import pytest
from conftest import TINY

from llama2np import Beam, Config, State, beam_search
from llama2np.decoding.logits import log_softmax
from llama2np.text.tokenizer import BOS, EOS

SMALL = Config(dim=8, hidden_dim=8, n_layers=1, n_heads=2, n_kv_heads=2, vocab_size=5, seq_len=32)


class Table:
    """A model of five tokens whose logits depend, at random, on the last two tokens."""

    config = SMALL

    def __init__(self, seed):
        self.table = np.random.default_rng(seed).normal(size=(5, 5, 5), scale=2).astype("f4")

    def forward(self, tokens, state, all_logits=False):
        state.reserve(state.pos + len(tokens))
        state.append(np.array(tokens))
        state.pos += len(tokens)
        a, b = (*state.tokens[-2:], 0)[:2]
        return self.table[a, b]

    def logprob(self, prompt, tokens):
        state, total, unread = State(SMALL), 0.0, prompt
        for token in tokens:
            total += log_softmax(self.forward(unread, state))[token]
            unread = [token]
        return total


def everything(length):
    """All that beams can be after `length` steps: what has ended, and what has not."""
    for n in range(1, length + 1):
        for tokens in itertools.product(range(5), repeat=n):
            inner, last = tokens[:-1], tokens[-1]
            if not {BOS, EOS} & set(inner) and (n == length or last in (BOS, EOS)):
                yield tokens


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("length_penalty", [0, 1, 2])
def test_with_room_for_all_it_finds_the_best_of_all(seed, length_penalty):
    table, prompt = Table(seed), [3, 4]
    expected = {tokens: table.logprob(prompt, tokens) for tokens in everything(4)}
    found = beam_search(
        table, prompt, beams=len(expected), max_new_tokens=4, length_penalty=length_penalty
    )
    assert {beam.tokens: beam.logprob for beam in found} == pytest.approx(expected)
    scores = [beam.logprob / len(beam.tokens) ** length_penalty for beam in found]
    assert scores == sorted(scores, reverse=True)
    assert [beam.score(length_penalty) for beam in found] == scores


def test_one_beam_is_greedy_choice(model):
    plain = model.generate("AB", temperature=0, max_new_tokens=30)
    plain.read()
    (beam,) = beam_search(model, plain.prompt, beams=1, max_new_tokens=30)
    assert list(beam.tokens) == plain.tokens


def test_more_beams_find_something_likelier(model):
    prompt = model.tokenizer.encode("AB")
    best = [
        beam_search(model, prompt, beams=beams, max_new_tokens=12, length_penalty=0)[0].logprob
        for beams in (1, 4)
    ]
    assert best[1] > best[0]


def test_a_beam_s_log_probability_is_that_of_its_tokens(model):
    """So no beam has read what belongs to another."""
    prompt = model.tokenizer.encode("AB")
    beams = beam_search(model, prompt, beams=5, max_new_tokens=9)
    assert len({beam.tokens for beam in beams}) == 5
    assert [b.score() for b in beams] == sorted((b.score() for b in beams), reverse=True)
    for beam in beams:
        state = model.new_state()
        rows = model.forward([*prompt, *beam.tokens[:-1]], state, all_logits=True)
        logprobs = log_softmax(rows[len(prompt) - 1 :])
        expected = logprobs[np.arange(len(beam.tokens)), beam.tokens].sum()
        assert beam.logprob == pytest.approx(expected, abs=1e-3)


def test_it_stops_where_the_context_ends(model):
    prompt = [5] * (TINY.seq_len - 2)
    beams = beam_search(model, prompt, beams=2, max_new_tokens=99)
    assert {len(beam.tokens) for beam in beams if not beam.ended} <= {3}
    assert beam_search(model, prompt, beams=2, max_new_tokens=0) == [Beam()]


def test_ended():
    assert Beam((5, EOS)).ended and Beam((BOS,)).ended
    assert not Beam().ended and not Beam((EOS, 5)).ended


@pytest.mark.parametrize("options", [{"beams": 0}, {"max_new_tokens": -1}])
def test_arguments_out_of_range_are_refused(model, options):
    with pytest.raises(ValueError, match="beams must be 1 or more, max_new_tokens 0 or more"):
        beam_search(model, [1], **options)
