"""Conversations: the template, the random stream, interruptions, and a context that fills."""

import pytest
from conftest import TINY, letters, scripted

from llama2np.text.tokenizer import EOS


def watched(model, monkeypatch, answers):
    """Script the answers, and return the list of token lists that the network read."""
    read = []
    scripted(model, monkeypatch, answers)
    forward = model.transformer.forward

    def watch(tokens, state, all_logits=False):
        read.append(list(tokens))
        return forward(tokens, state, all_logits)

    monkeypatch.setattr(model.transformer, "forward", watch)
    return read


def test_template(model, monkeypatch):
    """Llama 2's: the system prompt in the first turn alone, EOS after each answer."""
    read = watched(model, monkeypatch, [*letters("A"), EOS, *letters("BC"), EOS])
    encode = model.tokenizer.encode
    chat = model.chat("S", temperature=0)
    assert "".join(chat.send("X")) == "A"
    assert "".join(chat.send("Y")) == "BC"
    assert read == [
        encode("[INST] <<SYS>>\nS\n<</SYS>>\n\nX [/INST]"),
        letters("A"),
        [EOS, *encode("[INST] Y [/INST]")],
        letters("B"),
        letters("C"),
    ]


def test_an_abandoned_answer_counts_as_ended(model, monkeypatch):
    read = watched(model, monkeypatch, [*letters("ABCD"), EOS])
    chat = model.chat(temperature=0)
    answer = chat.send("X")
    assert [next(answer), next(answer)] == ["A", "B"]
    answer.close()
    list(chat.send("Y"))
    # B was said but not read yet when the answer was abandoned
    assert read[2] == [*letters("B"), EOS, *model.tokenizer.encode("[INST] Y [/INST]")]


def test_one_draw_for_each_position(model, monkeypatch):
    """run.c's chat draws at every position, so that seeds agree with it."""
    scripted(model, monkeypatch, [EOS, EOS])
    chat = model.chat(temperature=1e-3, seed=42)
    draws = []
    monkeypatch.setattr(chat._sampler, "_draw", lambda: draws.append(1) or 0)
    list(chat.send("X"))
    first = len(model.tokenizer.encode("[INST] X [/INST]"))
    assert len(draws) == first
    list(chat.send("Y"))
    assert len(draws) == 2 * first + 1  # one for the EOS between the turns


def test_a_full_context_is_said(model, monkeypatch):
    said = len(model.tokenizer.encode("[INST] A [/INST]"))
    scripted(model, monkeypatch, letters("ABCDEFGHIJ"))
    chat = model.chat(temperature=0, positions=said + 3)
    with pytest.raises(ValueError, match=f"context of {said + 3} positions .* {said + 3} are left"):
        chat.send("A" * 30)
    assert not chat.full
    # The failed turn left nothing behind. The last token is said, but there is no room to read it.
    assert "".join(chat.send("A")) == "ABCD"
    assert chat.full
    assert model.chat(positions=10**6).positions == TINY.seq_len
    with pytest.raises(ValueError, match="positions must be 0 .* or more, not -5"):
        model.chat(positions=-5)
