"""Several greedy tokens in one call: the same as token by token."""

import numpy as np
import pytest
from conftest import TINY

from llama2np.formats import checkpoint
from llama2np.formats.checkpoint import Header
from llama2np.model.hooks import Trace
from llama2np.model.transformer import State, Transformer


@pytest.mark.parametrize("version, group", ((1, 0), (2, 16)))
def test_greedy_is_forward_and_the_most_probable_token_in_turn(write, version, group):
    transformer = Transformer(
        *checkpoint.load(write("tiny.bin", Header(version, TINY, True, group)))
    )
    one, many = State(TINY), State(TINY)
    transformer.forward([7, 8, 9], one), transformer.forward([7, 8, 9], many)
    tokens, logits = transformer.greedy(10, many, 20)
    assert (tokens.dtype, tokens.shape, logits.shape) == (np.int64, (20,), (20, TINY.vocab_size))
    token = 10
    for i in range(20):
        assert tokens[i] == token
        row = transformer.forward([token], one)
        np.testing.assert_array_equal(logits[i], row)
        token = int(row.argmax())
    assert many.pos == one.pos == 23
    np.testing.assert_array_equal(many.tokens, one.tokens)
    np.testing.assert_array_equal(many.values[:, :, :23], one.values[:, :, :23])


def test_greedy_refuses_what_forward_refuses(write):
    transformer = Transformer(*checkpoint.load(write("tiny.bin", Header(1, TINY, True))))
    state = State(TINY)
    for token, count, message in ((300, 2, "not in"), (5, 97, "do not fit"), (5, 0, "one or more")):
        with pytest.raises(ValueError, match=message):
            transformer.greedy(token, state, count)
    assert state.pos == 0


def test_a_network_with_other_steps_does_not_go_on_by_itself(write):
    class Louder(Transformer):
        def forward(self, tokens, state, all_logits=False):
            return 2 * super().forward(tokens, state, all_logits)

    loaded = checkpoint.load(write("tiny.bin", Header(1, TINY, True)))
    watched = Transformer(*loaded).with_hooks([Trace("logits")])
    assert Transformer(*loaded).max_greedy_tokens > 1
    assert Louder(*loaded).max_greedy_tokens == watched.max_greedy_tokens == 1
    with pytest.raises(ValueError, match="greedy: a network with hooks must use forward"):
        watched.greedy(5, State(TINY), 2)


def told(model, monkeypatch, most, state=None):
    """A greedy story, and where its state was after each piece, in calls of at most `most`."""
    monkeypatch.setattr(type(model.transformer), "max_greedy_tokens", most)
    state = state or model.new_state()
    story = model.generate("ABC", state=state, temperature=0, max_new_tokens=50, logprobs=2)
    places = [(piece, state.pos, state.tokens.tolist()) for piece in story]
    monkeypatch.undo()
    return story, places


def test_a_network_that_goes_on_by_itself_tells_the_same(model, monkeypatch):
    (one, places), (many, others) = (told(model, monkeypatch, most) for most in (1, 16))
    assert places == others and len(many.tokens) == 50
    assert (one.tokens, one.text, one.stop_reason) == (many.tokens, many.text, many.stop_reason)
    assert (one.logprobs, one.top_logprobs) == (many.logprobs, many.top_logprobs)


def test_it_reads_no_more_than_twice_what_was_told(model, monkeypatch):
    counts, greedy = [], model.transformer.greedy

    def watch(token, state, count):
        counts.append(count)
        return greedy(token, state, count)

    monkeypatch.setattr(model.transformer, "greedy", watch)
    story = model.generate("ABC", temperature=0, max_new_tokens=50)
    for said, _ in enumerate(story):
        assert sum(counts) <= 2 * said
    assert counts == [2, 4, 8, 16, 16, 2]  # and two by `forward`: they do not wait for others


def test_a_story_that_is_left_can_be_gone_on_with(model, monkeypatch):
    """The network is ahead then, and what it read ahead is forgotten."""
    whole = model.generate("ABC", temperature=0, max_new_tokens=50)
    whole.read()
    for said in (7, 8, 9, 30):
        state = model.new_state()
        story = model.generate("ABC", state=state, temperature=0, max_new_tokens=50)
        for _ in range(said):
            next(story)
        assert state.pos == len(story.prompt) + said - 1
        fork = state.fork()
        for copy in (state, fork):
            more = [*story.prompt, *story.tokens]
            rest = model.generate(more, state=copy, temperature=0, max_new_tokens=50 - said)
            rest.read()
            assert story.tokens + rest.tokens == whole.tokens
