"""How a storyteller is made: corpus, batches, training, files."""

import json
import math

import numpy as np
import pytest

from llama2np.decoding.logits import log_softmax
from llama2np.formats import checkpoint
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.tokenizer_bin import write_bin
from llama2np.learning.trainer import score
from llama2np.model.config import Config
from llama2np.model.transformer import State, Transformer
from llama2np.text.tokenizer import BOS, Tokenizer
from llama2np.text.training import train_sentencepiece
from tools import train
from tools.stories.teller import tell
from tools.stories.words import said_again
from tools.training.copying import said_twice
from tools.training.corpus import HELD_OUT, Corpus, batches, encode
from tools.training.settings import Settings, new_trainer

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


def test_a_batch_predicts_each_token_and_the_end(corpus):
    batch = corpus.batch(np.array([3, 0]), 8)
    assert batch.shape == (2, corpus.lengths[[3, 0]].max())
    assert batch.lengths.tolist() == corpus.lengths[[3, 0]].tolist()
    place = 0
    for row, story in enumerate((3, 0)):
        length, start = corpus.lengths[story], corpus.starts[story]
        part = slice(place, place := place + length)
        assert (batch.tokens[row, :length] == corpus.tokens[start : start + length]).all()
        assert batch.tokens[row, 0] == batch.targets[part][-1] == BOS
        assert (batch.targets[part][:-1] == batch.tokens[row, 1:length]).all()
        assert (batch.rows[part] == row * batch.shape[1] + np.arange(length)).all()
        again = corpus.again[start + 1 : start + 1 + length]
        assert (batch.weights[part] == np.where(again, 8, 1)).all()
    assert place == len(batch.rows) == len(batch.targets) and (batch.weights == 8).any()
    assert corpus.batch(np.array([3, 0])).weights is None


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
    batch = said_twice(3, 300, seed=(1, 2))
    tokens, targets = batch.tokens, batch.targets.reshape(3, 64)
    assert tokens.shape == (3, 128) and (tokens[:, 0] == BOS).all() and set(batch.lengths) == {128}
    assert tokens[:, 1:].min() >= 259 and tokens.max() < 300  # no bytes, nothing special
    assert (tokens[:, 1:65] == targets).all() and (tokens[:, 65:] == targets[:, :-1]).all()
    assert (batch.rows.reshape(3, 64) == np.arange(3)[:, None] * 128 + np.arange(64, 128)).all()
    assert (said_twice(3, 300, seed=(1, 2)).tokens == tokens).all()
    assert (said_twice(3, 300, seed=(1, 3)).tokens != tokens).any()


def test_the_learning_rate_goes_up_and_down():
    settings = Settings(copying=20, steps=100, warmup=10, rate=1.0, last_rate=0.1)
    rates = [settings.schedule.rate_at(step) for step in range(120)]
    assert rates[:20] == pytest.approx([min((i + 1) / 10, 1) for i in range(20)])
    rates = rates[20:]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1 and all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert rates[55] == pytest.approx(0.55) and rates[99] == pytest.approx(0.1, abs=1e-3)
    assert Settings(copying=0, steps=100, warmup=10).schedule.rate_at(0) == pytest.approx(3e-4)


def trained(corpus, folder, steps=6, **changes):
    folder.mkdir(exist_ok=True)
    settings = Settings(copying=2, steps=steps - 2, batch=8, warmup=2, **changes)
    return new_trainer(CONFIG, settings, corpus, folder)


def same_bits(a, b):
    return a.losses == b.losses and all(
        (a.parameters[name] == b.parameters[name]).all() for name in a.parameters
    )


def test_two_trainings_of_one_seed_are_equal(corpus, tmp_path):
    first, second = trained(corpus, tmp_path / "a"), trained(corpus, tmp_path / "b")
    other = trained(corpus, tmp_path / "c", seed=2)
    for each in (first, second, other):
        each.run()
    assert same_bits(first, second) and not same_bits(first, other)


@pytest.mark.parametrize("stop", [1, 4])  # among the tokens said twice, and among the stories
def test_a_stopped_training_goes_on(corpus, tmp_path, stop):
    """The process ends after a step that no checkpoint has; what follows is the same to the bit."""
    whole = trained(corpus, tmp_path / "whole")
    whole.run()
    first = trained(corpus, tmp_path / "parts")
    first.run(until=stop)
    first.one_step()
    second = trained(corpus, tmp_path / "parts")
    assert second.step == stop and second.losses == whole.losses[:stop]
    second.run()
    assert same_bits(second, whole)
    assert not list(tmp_path.glob("**/*.part"))
    lines = (tmp_path / "parts" / "losses.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == whole.losses


def test_other_settings_do_not_go_on(corpus, tmp_path):
    trained(corpus, tmp_path / "a").run(until=1)
    with pytest.raises(CheckpointError, match="delete it to start again"):
        trained(corpus, tmp_path / "a", steps=7)
    with pytest.raises(CheckpointError, match="last=0.02, expected 0.5|last"):
        trained(corpus, tmp_path / "a", last_rate=0.5)


def test_too_few_stories_for_a_batch(corpus, tmp_path):
    with pytest.raises(ValueError, match="60 stories: a batch has 64"):
        new_trainer(CONFIG, Settings(batch=64), corpus, tmp_path)


def test_it_learns(corpus, tmp_path):
    trainer = trained(corpus, tmp_path / "a", steps=40)
    before = score(trainer.program, trainer.parameters, corpus.all())
    assert before.loss == pytest.approx(math.log(300), abs=0.3)
    assert before.count == corpus.lengths.sum()
    trainer.run()
    assert score(trainer.program, trainer.parameters, corpus.all()).loss < before.loss - 0.5


def test_from_stories_to_files(tmp_path, monkeypatch, capsys):
    """All of `make model` with few stories and a small network, whose files run elsewhere."""
    config = Config(
        dim=16, hidden_dim=32, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=1008, seq_len=256
    )
    monkeypatch.setattr(train, "CONFIG", config)
    monkeypatch.setattr(train, "HELD_OUT_STORIES", 20)
    settings = Settings(copying=1, steps=3, warmup=1)
    corpus, held_out = train.prepare(tmp_path, 48)
    trainer = new_trainer(config, settings, corpus, tmp_path)
    train.train(trainer, every=2)
    assert "step 4 of 4: loss" in capsys.readouterr().out
    train.export(tmp_path, trainer.parameters)
    found = train.figures(trainer, corpus, held_out, tmp_path / "losses.jsonl")
    assert found["stories"] == len(corpus) and found["steps"] == 4
    network = Transformer(*checkpoint.load(tmp_path / "stories-box.bin"), engine="numpy")
    nats = 0.0
    for story in range(len(held_out)):
        tokens = held_out.tokens[held_out.starts[story] : held_out.starts[story + 1] + 1]
        logits = network.forward(tokens[:-1].astype(int), State(config), all_logits=True)
        nats -= log_softmax(logits)[np.arange(len(logits)), tokens[1:]].sum()
    assert found["loss, held out"] == pytest.approx(nats / held_out.lengths.sum(), abs=1e-4)
    assert (tmp_path / "stories-box-q8.bin").stat().st_size > 0
