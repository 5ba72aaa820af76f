"""Long runs: to the end of a context of 4096, and many turns, in memory that is bounded."""

import gc
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import examples, letters, random_tensors, scripted, write_tokenizer

from llama2np import Llama
from llama2np.formats import checkpoint
from llama2np.formats.checkpoint import Header
from llama2np.model.config import Config
from llama2np.model.transformer import State, Transformer
from llama2np.text.tokenizer import EOS

LONG = Config(8, 8, 1, 2, 1, 300, 4096)


@pytest.fixture
def model(tmp_path):
    """Its classifier prefers letters, so that no answer ends by itself."""
    header = Header(1, LONG, False)
    tensors = random_tensors(header)
    tensors["classifier"][:260] = 0
    tensors["classifier"][260:] *= 50
    checkpoint.save(tmp_path / "x.bin", header, tensors)
    return Llama.load(tmp_path / "x.bin", write_tokenizer(tmp_path / "t.bin"))


def resident():
    """The bytes of this process in memory; 0 where nobody tells."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0


def cache_bytes(config, positions):
    """The bytes of keys, values and scores for this number of positions."""
    return 4 * positions * (2 * config.n_layers * config.kv_dim + config.n_heads)


@pytest.mark.compiled
def test_a_story_of_the_whole_context(model):
    """Each position is reached, in the memory of the cache."""
    prompt = "A" * 100
    count, memory = 0, 0
    for _ in model.generate(prompt, temperature=1, seed=3):
        count += 1
        memory = memory or (resident() if count == 100 else 0)  # all kernels are there by now
    assert count == LONG.seq_len - len(model.tokenizer.encode(prompt)) + 1
    assert resident() - memory < 2 * cache_bytes(LONG, LONG.seq_len) + 2**22


@pytest.mark.compiled
def test_the_last_position_is_as_good_as_the_first(model):
    """One token at a time is what one long prompt is."""
    tokens = np.random.default_rng(0).integers(0, 300, LONG.seq_len)
    transformer: Transformer = model.transformer
    state = State(LONG)
    for token in tokens:
        logits = transformer.forward([token], state)
    assert state.pos == LONG.seq_len
    whole = transformer.forward(tokens, State(LONG))
    np.testing.assert_allclose(logits, whole, atol=2e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="do not fit into the context"):
        transformer.forward([1], state)


@pytest.mark.compiled
def test_many_turns(tmp_path):
    """In one conversation, each of them interrupted; memory is that of the cache and the tokens."""
    config = Config(2, 4, 1, 1, 1, 300, 2**15)
    header = Header(1, config, False)
    checkpoint.save(tmp_path / "x.bin", header, random_tensors(header))
    model = Llama.load(tmp_path / "x.bin", write_tokenizer(tmp_path / "t.bin"))
    chat = model.chat(temperature=0.9, seed=5)
    turns = examples(1000)
    for turn in range(turns):
        if turn == 10:
            memory = resident()
        answer = chat.send("AB")
        for count, _ in enumerate(answer):
            if count == turn % 5:
                break
        answer.close()
    positions = chat._state.pos
    assert 15 * turns < positions < config.seq_len
    bound = 2 * cache_bytes(config, config.seq_len) + 64 * positions + 2**22
    assert resident() - memory < bound


def test_many_conversations(model, monkeypatch):
    """Each with a State of its own; none of them stays."""
    scripted(model, monkeypatch, [*letters("AB"), EOS] * examples(1000))
    monkeypatch.setattr("conftest.TINY", LONG)

    def talk():
        assert "".join(model.chat(temperature=0).send("A")) == "AB"

    for _ in range(10):
        talk()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(examples(1000) - 10):
            talk()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 2**16
    finally:
        tracemalloc.stop()
