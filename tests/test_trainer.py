"""Training: torch's losses, and the optimizer."""

import math
from dataclasses import replace

import numpy as np
import pytest
from conftest import EXHAUSTIVE
from networks import program, tiny
from trainings import Random, Same, trained

from llama2np.formats import loading
from llama2np.learning import shards as shards_module
from llama2np.learning.batch import Batch
from llama2np.learning.gradients import batch_gradients
from llama2np.learning.heads import with_labels
from llama2np.learning.optimizer import AdamW, AdamWOptions, clip
from llama2np.learning.passes import parameters_of
from llama2np.learning.schedule import Phases, Schedule
from llama2np.learning.trainer import Settings, Trainer, score

FOLDERS = {
    "llama_mha_tied": "hf_llama_mha_fp32_tied",
    **{name: f"architectures/{name}" for name in ("qwen2_tied", "gpt2", "phi2", "mixtral")},
}


@pytest.mark.parametrize("name", FOLDERS)
def test_adamw_of_torch(reference, name):
    """Ten of its twenty steps, or all. Our losses differ by 1e-6, as sums have another order; the
    bars are 20 times that, since the rounding errors of one step are in all later ones.
    """
    answers = np.load(reference / "learning" / f"{name}.npz")
    network = loading.transformer(reference / FOLDERS[name], "numpy").program
    steps = 20 if EXHAUSTIVE else 10
    settings = Settings(steps, 1e-3, decay="constant", decay_all=True)
    data = Same(Batch.next_tokens(answers["tokens"]))
    trainer = Trainer(network, parameters_of(network), data, settings)
    trainer.run()
    np.testing.assert_allclose(trainer.losses, answers["adamw_losses"][:steps], rtol=0, atol=2e-5)
    np.testing.assert_allclose(trainer.norms, answers["adamw_grad_norms"][:steps], rtol=1e-4)


def test_a_classifier_of_torch(reference):
    answers = np.load(reference / "learning" / "classifier.npz")
    model = loading.transformer(reference / FOLDERS["llama_mha_tied"], "numpy")
    network = with_labels(model, 3, bias=True)
    batch = Batch.labels(answers["tokens"], answers["lengths"], answers["labels"])
    settings = Settings(
        *(15, 5e-4),
        **{"decay": "constant", "decay_all": True, "betas": (0.9, 0.999), "eps": 1e-6},
        **{"weight_decay": 0.01, "clip": 0.0},
    )
    trainer = Trainer(network, parameters_of(network), Same(batch), settings)
    trainer.run()
    np.testing.assert_allclose(trainer.losses, answers["losses"], rtol=0, atol=2e-5)


def test_the_course_s_optimizer_test(reference):
    """The task of optimizer_test.py of CMU 11-711's minllama-assignment, from torch's weights."""
    expected = np.load(reference / "learning" / "optimizer_test.npy")
    start = [[-0.004322517663240433, 0.3097158372402191, -0.4751853346824646],
             [-0.4248946011066437, -0.2223689705133438, 0.15482072532176971]]  # fmt: skip
    parameters = {"w": np.array(start, np.float32)}
    options = AdamWOptions((0.9, 0.999), 1e-6, 1e-4, decay_after=True)
    optimizer, random = AdamW(parameters, options), np.random.default_rng(0)
    for _ in range(1000):
        x = random.uniform(size=3).astype(np.float32)
        y = np.array([x[0] + x[1], -x[2]])
        by_y = 2 * (parameters["w"] @ x - y)
        optimizer.update({"w": np.outer(by_y, x).astype(np.float32)}, 1e-3)
    np.testing.assert_allclose(parameters["w"], expected, rtol=0, atol=1e-6)


def test_the_two_orders_of_decay():
    """Both by hand, for one number and one step: m / (1 - b1) = g, sqrt(v / (1 - b2)) = |g|."""
    for after, expected in (
        (False, 2 * (1 - 0.1 * 0.5) - 0.1 * 3 / (3 + 0.5)),
        (True, (2 - 0.1 * 3 * 0.2**0.5 / (3 * 0.2**0.5 + 0.5)) * (1 - 0.1 * 0.5)),
    ):
        parameters = {"w": np.array([[2.0]], np.float32), "norm": np.array([2.0], np.float32)}
        optimizer = AdamW(parameters, AdamWOptions((0.9, 0.8), 0.5, 0.5, after))
        optimizer.update({n: np.full_like(p, 3) for n, p in parameters.items()}, 0.1)
        assert parameters["w"][0, 0] == pytest.approx(expected, rel=1e-6)
        assert parameters["norm"][0] > parameters["w"][0, 0]  # a vector does not shrink


def test_clipping():
    gradients = {"a": np.array([3.0, 0], np.float32), "b": np.array([[4.0]], np.float32)}
    assert clip(gradients, 0) == 5 and gradients["a"][0] == 3
    assert clip(gradients, 6) == 5 and gradients["a"][0] == 3
    assert clip(gradients, 1) == 5
    assert gradients["a"][0] == pytest.approx(0.6) and gradients["b"][0, 0] == pytest.approx(0.8)


def test_schedules():
    rates = [Schedule(1, 100, 10, "cosine", 0.2).rate_at(i) for i in range(120)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1 and rates[55] == pytest.approx(0.6) and rates[110] == pytest.approx(0.2)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    linear = Schedule(1, 100, 0, "linear", 0.0)
    assert [linear.rate_at(i) for i in (0, 50, 100)] == [1, 0.5, 0]
    assert Schedule(0.3, 5, 0, "constant").rate_at(4) == 0.3


def test_it_learns():
    trainer = trained(steps=60, data=Same(Random().batch(0)))
    trainer.run()
    assert trainer.losses[-1] < trainer.losses[0] / 3


def test_accumulated_batches_are_one_batch():
    """The same sequences in one batch, or in two: the same gradients but for the last bits."""

    class Halves(Random):
        def batch(self, number):
            whole = Random(count=4).batch(number // 2)
            rows = whole.rows // whole.shape[1] // 2 == number % 2
            part = slice(number % 2 * 2, number % 2 * 2 + 2)
            at = whole.rows[rows] - number % 2 * 2 * whole.shape[1]
            return Batch(whole.tokens[part], whole.lengths[part], at, whole.targets[rows])

    config, tensors = tiny("llama")
    found = []
    for data, accumulate in ((Random(count=4), 1), (Halves(), 2)):
        parameters = {n: t.astype(np.float32) for n, t in tensors.items()}
        settings = Settings(3, 1e-3, accumulate=accumulate)
        trainer = Trainer(program(config, tensors), parameters, data, settings)
        trainer.run()
        found.append(trainer.losses)
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_seeds_and_steps_decide(tmp_path):
    found = [trained(seed=seed) for seed in (0, 0, 1)]
    for each in found:
        each.run()
    assert found[0].losses == found[1].losses != found[2].losses


def test_scores():
    trainer = trained(steps=80, data=Same(Random().batch(0)))
    network, batch = trainer.program, Random().batch(0)
    before = score(network, trainer.parameters, [batch, batch])
    assert before.count == 2 * len(batch.rows) and 0 <= before.accuracy <= 1
    trainer.run()
    after = score(network, trainer.parameters, [batch])
    assert after.loss < before.loss and after.accuracy == 1
    with pytest.raises(ValueError, match="nothing to predict"):
        score(network, trainer.parameters, [])


@pytest.mark.parametrize(
    "changes, words",
    (
        ({"steps": 0}, "steps=0 must be 1 or more"),
        ({"rate": -1.0}, "learning rate must not be negative"),
        ({"rate": math.nan}, "learning rate must not be negative"),
        ({"decay": "step"}, "decay must be one of cosine, linear, constant"),
        ({"betas": (1.0, 0.9)}, "beta1 must be from 0 to less than 1"),
        ({"eps": 0.0}, "eps=0.0 must be positive"),
        ({"dropout": 1.0}, "dropout must be from 0 to less than 1"),
        ({"accumulate": 0}, "accumulate=0 must be 1 or more"),
        ({"last_rate": 2.0}, "last=2.0 from 0 to 1"),
    ),
)
def test_wrong_settings(changes, words):
    with pytest.raises(ValueError, match=words):
        Settings(**{"steps": 5} | changes)


def test_wrong_heads(reference):
    config, tensors = tiny("llama")
    with pytest.raises(ValueError, match="two labels or more"):
        with_labels(program(config, tensors), 1)
    config, tensors = tiny("bert")
    with pytest.raises(ValueError, match="without logits of tokens"):
        with_labels(program(config, tensors), 3)


def test_shards_are_the_batch():
    """Their losses and gradients add up to the batch's, for texts, labels, types and weights."""
    config, tensors = tiny("llama", 0)
    network, random = program(config, tensors), np.random.default_rng(0)
    lengths = random.integers(2, 10, 7)
    batch = Batch.next_tokens(random.integers(0, 17, (7, 9)), np.minimum(lengths, 9))
    weights = random.random(len(batch.rows)).astype(np.float32)
    batch = replace(batch, weights=weights, types=random.integers(0, 2, batch.shape))
    parts = [*map(shards_module._part, [batch] * 3, (0, 2, 5), (2, 5, 7))]
    assert sum(part.weight for part in parts) == pytest.approx(batch.weight)
    assert parts[0].types.shape == parts[0].tokens.shape
    whole = batch_gradients(network, tensors, batch, 1.0)
    each = [batch_gradients(network, tensors, part, 1.0) for part in parts]
    assert sum(loss.total for loss, _ in each) == pytest.approx(whole[0].total)
    for name, gradient in whole[1].items():
        np.testing.assert_allclose(sum(g[name] for _, g in each), gradient, atol=1e-10)


def test_the_number_of_threads_changes_no_bit(monkeypatch):
    monkeypatch.setattr(shards_module, "_TOKENS", 8)
    config, tensors = tiny("llama", 0)
    network, found = program(config, tensors), []
    for threads in (1, 2, 5):
        settings = Settings(2, 1e-2, dropout=0.1, accumulate=2)
        trainer = Trainer(
            network, parameters_of(network), Random(count=6), settings, threads=threads
        )
        trainer.run()
        found.append((trainer.losses, {n: a.tobytes() for n, a in trainer.parameters.items()}))
    assert len(shards_module.shards(Random(count=6).batch(0))) == 6
    assert all(one == found[0] for one in found[1:])


def test_an_error_in_a_thread_reaches_the_caller():
    def function(item):
        if item == 3:
            raise ValueError("three")
        return item

    found = []
    with pytest.raises(ValueError, match="three"):
        found.extend(shards_module.in_order(function, range(6), 2))
    assert list(shards_module.in_order(str, range(6), 3)) == list("012345")


def test_weights_of_targets():
    """A target of weight 0 counts like one that is not there, one of 2 like two of them."""
    config, tensors = tiny("llama", 0)
    network = program(config, tensors)
    batch = Batch.next_tokens(np.arange(10)[None] % 7)
    chosen = np.array([1, 0, 0, 2, 1, 0, 0, 0, 0], np.float32)
    weighted = batch_gradients(network, tensors, replace(batch, weights=chosen))
    once = [replace(batch, rows=batch.rows[k], targets=batch.targets[k]) for k in ([0, 3, 4], [3])]
    each = [batch_gradients(network, tensors, part, 1 / 4) for part in once]
    assert weighted[0].total == pytest.approx(sum(loss.total for loss, _ in each))
    assert replace(batch, weights=chosen).weight == 4
    for name, gradient in weighted[1].items():
        np.testing.assert_allclose(gradient, sum(g[name] for _, g in each), atol=1e-10)


def test_phases():
    phases = Phases((Schedule(1.0, 4, 2, "constant"), Schedule(2.0, 4, 0, "linear", 0.5)))
    assert phases.steps == 8
    assert [phases.rate_at(i) for i in range(8)] == [0.5, 1, 1, 1, 2, 1.75, 1.5, 1.25]
