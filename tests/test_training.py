"""How a storyteller is made. What needs torch is skipped without it: extra `train`."""

import math

import numpy as np
import pytest

from llama2np.formats import llama2c, write
from llama2np.formats.tokenizer_bin import write_bin
from llama2np.model.config import Config
from llama2np.text.tokenizer import BOS, Tokenizer
from llama2np.text.training import train_sentencepiece
from tools.stories.teller import tell
from tools.stories.words import said_again
from tools.training.copying import said_twice
from tools.training.corpus import HELD_OUT, Corpus, batches, encode
from tools.training.schedule import Settings, rate_at

CONFIG = Config(
    dim=16, hidden_dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, seq_len=128
)


@pytest.fixture
def corpus():
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 20, 60)
    stories = [np.append(BOS, rng.integers(3, 40, length - 1)) for length in lengths]
    tokens = np.concatenate([*stories, [BOS]]).astype(np.uint16)
    again = rng.random(len(tokens)) < 0.1
    return Corpus(tokens, np.append(0, np.cumsum(lengths)), np.full(60, 2.5), again)


def test_rows_begin_with_bos_and_end_before_the_next(corpus):
    tokens, targets, again = corpus.rows(np.array([3, 0]))
    assert again.shape == tokens.shape == targets.shape == (2, corpus.lengths[[3, 0]].max())
    for row, story in enumerate((3, 0)):
        length = corpus.lengths[story]
        assert tokens[row, 0] == targets[row, length - 1] == BOS
        assert (tokens[row, 1:length] == targets[row, : length - 1]).all()
        assert (targets[row, length:] == -1).all() and not again[row, length:].any()
        start = corpus.starts[story] + 1
        assert (again[row, :length] == corpus.again[start : start + length]).all()


def test_a_corpus_on_disk(corpus, tmp_path):
    corpus.save(tmp_path / "corpus.npz")
    loaded = Corpus.load(tmp_path / "corpus.npz")
    assert (loaded.tokens == corpus.tokens).all() and (loaded.starts == corpus.starts).all()
    assert (loaded.again == corpus.again).all()
    assert loaded.entropy == corpus.entropy == pytest.approx(60 * 2.5 / corpus.lengths.sum())


def test_batches_hold_each_story_at_most_once(corpus):
    found = batches(corpus.lengths, 8, seed=5)
    assert [len(batch) for batch in found] == [8] * 7
    assert len(set(np.concatenate(found))) == 56
    again = batches(corpus.lengths, 8, seed=5)
    assert all((a == b).all() for a, b in zip(found, again, strict=True))
    assert (np.concatenate(found) != np.concatenate(batches(corpus.lengths, 8, seed=6))).any()
    assert all(np.ptp(corpus.lengths[batch]) < 6 for batch in found)


def test_stories_as_tokens(tmp_path):
    model = tmp_path / "tokenizer.model"
    train_sentencepiece([tell(i).text for i in range(400)], model, 1008)
    write_bin(model, tmp_path / "tokenizer.bin")
    stories = [tell(HELD_OUT + i) for i in range(30)]
    corpus = encode(iter(stories), model, 10_000)
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.bin", 1008)
    for i, story in enumerate(stories):
        tokens = corpus.tokens[corpus.starts[i] : corpus.starts[i + 1]]
        assert tokens.tolist() == tokenizer.encode(story.text)
        again = corpus.again[corpus.starts[i] : corpus.starts[i + 1]]
        text = "".join(tokenizer.decode([token]) for token in tokens[again])
        named = [story.text[start:end] for start, end in said_again(story.text)]
        assert text.replace(" ", "") == "".join(named) and named
    short = encode(iter(stories), model, int(np.median(corpus.lengths)))
    assert 0 < len(short) < 30 and short.lengths.max() <= np.median(corpus.lengths)


def test_pieces_said_twice():
    tokens, targets = said_twice(3, 300, seed=(1, 2))
    assert tokens.shape == targets.shape == (3, 128) and (tokens[:, 0] == BOS).all()
    assert tokens[:, 1:].min() >= 259 and tokens.max() < 300  # no bytes, nothing special
    assert (tokens[:, 1:65] == targets[:, 64:]).all()  # what was said comes again
    assert (tokens[:, 65:] == targets[:, 64:-1]).all() and (targets[:, :64] == -1).all()
    assert (said_twice(3, 300, seed=(1, 2))[0] == tokens).all()
    assert (said_twice(3, 300, seed=(1, 3))[0] != tokens).any()


def test_the_learning_rate_goes_up_and_down():
    settings = Settings(copying=20, steps=100, warmup=10, rate=1.0, last_rate=0.1)
    rates = [rate_at(step, settings) for step in range(120)]
    assert rates[:20] == pytest.approx([min((i + 1) / 10, 1) for i in range(20)])
    rates = rates[20:]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1 and all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert rates[55] == pytest.approx(0.55) and rates[99] == pytest.approx(0.1, abs=1e-3)


def trained(corpus, path, steps=6):
    pytest.importorskip("torch", reason="training needs torch: pip install '.[train]'")
    from tools.training.loop import Training

    settings = Settings(copying=2, steps=steps - 2, batch=8, warmup=2)
    return Training(CONFIG, settings, corpus, path)


def test_a_stopped_training_goes_on(corpus, tmp_path):
    whole = trained(corpus, tmp_path / "whole.pt")
    whole.run(log=False)
    first = trained(corpus, tmp_path / "parts.pt")
    first.run(until=4, every=2, log=False)
    second = trained(corpus, tmp_path / "parts.pt")
    assert second.step == 4 and second.losses == first.losses
    second.run(log=False)
    assert second.losses == whole.losses and second.loss(corpus) == whole.loss(corpus)
    assert not list(tmp_path.glob("*.part"))
    assert len((tmp_path / "parts.losses").read_text().split()) == 6


def test_other_settings_do_not_go_on(corpus, tmp_path):
    trained(corpus, tmp_path / "a.pt").run(until=1, log=False)
    with pytest.raises(ValueError, match="delete it to start again"):
        trained(corpus, tmp_path / "a.pt", steps=7)


def test_it_learns(corpus, tmp_path):
    training = trained(corpus, tmp_path / "a.pt", steps=40)
    before = training.loss(corpus)
    assert before == pytest.approx(math.log(300), abs=0.3)
    training.run(log=False)
    assert training.loss(corpus) < before - 0.5


def test_the_network_is_ours(corpus, tmp_path):
    """Exported, it gives in NumPy and numba the logits it gives in torch."""
    training = trained(corpus, tmp_path / "a.pt", steps=3)
    import torch

    from llama2np.formats import checkpoint
    from llama2np.model.transformer import State, Transformer

    training.run(log=False)
    write.write_bin(llama2c.read_pt(tmp_path / "a.pt"), tmp_path / "a.bin", version=0)
    transformer = Transformer(*checkpoint.load(tmp_path / "a.bin"))
    tokens = corpus.tokens[:20].astype(int)
    ours = transformer.forward(tokens, State(transformer.config), all_logits=True)
    with torch.no_grad():
        theirs = training.network(torch.from_numpy(tokens)[None])[0].numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
