"""Training: torch's losses, the optimizer, and a training that stops and goes on."""

import io
import json
import math
import os
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from networks import program, tiny

from llama2np.formats import loading
from llama2np.formats.checkpoint import CheckpointError
from llama2np.learning import saved
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


class Same:
    """Always the same batch."""

    name = "same"

    def __init__(self, batch):
        self._batch = batch

    def batch(self, number):
        return self._batch


class Random:
    """Random sequences of random lengths."""

    def __init__(self, name="random", count=2):
        self.name, self.count = name, count

    def batch(self, number):
        random = np.random.default_rng(number)
        lengths = random.integers(2, 10, self.count)
        return Batch.next_tokens(random.integers(0, 17, (self.count, 9)), np.minimum(lengths, 9))


@pytest.mark.parametrize("name", FOLDERS)
def test_adamw_of_torch(reference, name):
    """Twenty steps. Our losses differ by 1e-6, as sums have another order; the bars are 20 times
    that, since the rounding errors of one step are in all later ones.
    """
    answers = np.load(reference / "learning" / f"{name}.npz")
    network = loading.transformer(reference / FOLDERS[name], "numpy").program
    settings = Settings(20, 1e-3, decay="constant", decay_all=True)
    data = Same(Batch.next_tokens(answers["tokens"]))
    trainer = Trainer(network, parameters_of(network), data, settings)
    trainer.run()
    np.testing.assert_allclose(trainer.losses, answers["adamw_losses"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(trainer.norms, answers["adamw_grad_norms"], rtol=1e-4)


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


def trained(path=None, steps=6, seed=0, data=None, **changes):
    config, tensors = tiny("llama")
    parameters = {n: t.astype(np.float32) for n, t in tensors.items()}
    log = changes.pop("log", None)
    settings = Settings(steps, 1e-2, dropout=0.1, seed=seed, **changes)
    network = program(config, tensors)
    return Trainer(network, parameters, data or Random(), settings, checkpoint=path, log=log)


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


def test_a_stopped_training_goes_on(tmp_path):
    whole = trained(tmp_path / "whole.npz", log=tmp_path / "whole.jsonl", accumulate=2)
    whole.run(every=2)
    assert trained(tmp_path / "other.npz", seed=1, accumulate=2).losses == []
    first = trained(tmp_path / "parts.npz", log=tmp_path / "parts.jsonl", accumulate=2)
    first.run(until=3, every=2)
    with open(tmp_path / "parts.jsonl", "a") as log:  # steps after the checkpoint, and half a line
        log.write('{"step": 4, "loss": 0}\n{"ste')
    second = trained(tmp_path / "parts.npz", log=tmp_path / "parts.jsonl", accumulate=2)
    assert second.step == 3 and second.losses == first.losses
    second.run()
    assert second.losses == whole.losses and second.norms == whole.norms
    for name, array in whole.parameters.items():
        np.testing.assert_array_equal(second.parameters[name], array)
    lines = [
        [json.loads(line) for line in (tmp_path / f"{n}.jsonl").read_text().splitlines()]
        for n in ("whole", "parts")
    ]
    for some in lines:
        assert [line["step"] for line in some] == [1, 2, 3, 4, 5, 6]
        assert all(line.pop("seconds") >= 0 for line in some)
    assert lines[0] == lines[1]
    assert not list(tmp_path.glob("*.part"))


def test_seeds_and_steps_decide(tmp_path):
    found = [trained(seed=seed) for seed in (0, 0, 1)]
    for each in found:
        each.run()
    assert found[0].losses == found[1].losses != found[2].losses


@pytest.mark.parametrize(
    "changes, words",
    (
        ({"steps": 7}, "steps=6, expected 7"),
        ({"seed": 5}, "seed=0, expected 5"),
        ({"data": Random("others")}, "data=random, expected others"),
    ),
)
def test_another_training_does_not_go_on(tmp_path, changes, words):
    trained(tmp_path / "a.npz").run(until=1)
    with pytest.raises(CheckpointError, match=words):
        trained(tmp_path / "a.npz", **changes)


HUGE = object()


@pytest.mark.parametrize("damage", (b"", b"no checkpoint", None))
def test_a_damaged_checkpoint(tmp_path, damage):
    path = tmp_path / "a.npz"
    trained(path).run(until=1)
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    with pytest.raises(CheckpointError, match="delete it to start again"):
        trained(path)


HOSTILE = {
    "a zip bomb": ("identity is compressed: a small file", {}, zipfile.ZIP_DEFLATED),
    "a pickle": ("step is object \\(\\), expected int64", {"step": np.array({}, object)}, 0),
    "another shape": (
        "m.final_norm is float32 \\(5,\\), expected float32 \\(12,\\)",
        {"m.final_norm": np.zeros(5, np.float32)}, 0,
    ),
    "another type": (
        "v.embedding is float64", {"v.embedding": np.zeros((17, 12))}, 0,
    ),
    "a missing array": ("it has no v.layers.1.wq", {"v.layers.1.wq": None}, 0),
    "a huge shape": ("classifier is float32 .1099511627776,.", {"p.classifier": HUGE}, 0),
    "a huge identity": ("its identity is larger", {"identity": np.zeros(2**24 + 1, np.int8)}, 0),
    "no identity": ("it has no identity", {"identity": None}, 0),
    "nested JSON": ("maximum recursion|too many levels", {"identity": np.array("[" * 99_999)}, 0),
    "no characters": (
        "decode bytes", {"identity": np.array([2**32 - 1], np.uint32).view("U1").reshape(())}, 0,
    ),
    "other JSON": ("its identity is no JSON object", {"identity": np.array("[1]")}, 0),
    "unknown parts": ("has unknown parts", {"identity": "added"}, 0),
    "fewer losses": ("losses is float64", {"losses": np.zeros(1)}, 0),
    "a negative step": ("-1 steps were taken", {"step": np.array(-1)}, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_checkpoint(tmp_path, name):
    """One clear line, before anything is read that is larger than expected, or changed."""
    words, changes, compression = HOSTILE[name]
    path = tmp_path / "a.npz"
    trained(path).run(until=2)
    with np.load(path) as file:
        arrays = dict(file) | changes
    if name == "unknown parts":
        identity = json.loads(trained()._identity()) | {"x": 1}
        arrays["identity"] = np.array(json.dumps(identity))
    with zipfile.ZipFile(path, "w", compression) as archive:
        for key, array in arrays.items():
            if array is HUGE:  # the header alone claims 4 TB
                array, shape = arrays["p.layers.0.w_up"], (2**40,)
            else:
                shape = None if array is None else array.shape
            if array is not None:
                archive.writestr(f"{key}.npy", npy(array, shape))
    trainer = trained()
    before = {n: a.copy() for n, a in trainer.parameters.items()}
    optimizer = trainer.optimizer
    with pytest.raises(CheckpointError, match=f"not a checkpoint.*{words}.*delete it") as error:
        saved.load(path, optimizer, trainer._identity())
    assert str(error.value).startswith(f"{path}: ") and str(error.value).isprintable()
    assert optimizer.step == 0
    for n, array in before.items():
        np.testing.assert_array_equal(trainer.parameters[n], array)


def npy(array, shape) -> bytes:
    """An array as .npy, whose header claims a shape."""
    out = io.BytesIO()
    np.lib.format.write_array(out, array, allow_pickle=True)
    return out.getvalue().replace(str(array.shape).encode(), str(shape).encode())


def test_a_checkpoint_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(OSError, match="named pipe"):
        trained(tmp_path / "a.npz")


def test_a_full_disk_loses_no_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    trainer = trained(path)
    trainer.run(until=2, every=1)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="a.npz"):
        trainer.run(until=4, every=1)
    assert trained(path).step == 2


def test_a_loss_that_is_no_number(tmp_path):
    trainer = trained(tmp_path / "a.npz")
    trainer.run(until=1)
    trainer.parameters["embedding"][:] = np.nan
    with pytest.raises(ValueError, match=r"step 2: the loss is nan.*a.npz has an earlier state"):
        trainer.run()
    assert trained(tmp_path / "a.npz").step == 1


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
    for threads in (1, 2, 3, 5):
        settings = Settings(3, 1e-2, dropout=0.1, accumulate=2)
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


def trainer_of(folder, steps=6, rate=1e-2, **options):
    folder.mkdir(exist_ok=True)
    config, tensors = tiny("llama", 0)
    network = program(config, tensors)
    paths = {"checkpoint": folder / "training.npz", "log": folder / "losses.jsonl"}
    settings = Settings(steps, rate)
    return Trainer(network, parameters_of(network), Random(), settings, **paths, **options)


def test_a_full_disk_does_not_end_a_training(tmp_path, monkeypatch):
    """The checkpoint of step 2 cannot be written, nor after step 3; after step 4 it can."""
    trainer, save, told = trainer_of(tmp_path), saved.save, []

    def full(path, optimizer, *rest):
        if optimizer.step in (2, 3):
            raise OSError(28, "No space left on device", str(path))
        assert optimizer.step in (4, 6)
        save(path, optimizer, *rest)

    monkeypatch.setattr(saved, "save", full)
    trainer.run(every=2, unsaved=told.append)
    assert [error.errno for error in told] == [28] and trainer.step == 6
    assert trainer_of(tmp_path).losses == trainer.losses


def test_a_full_disk_at_the_end_of_an_epoch(tmp_path, monkeypatch):
    """A command runs an epoch at a time: only after the last one a full disk is an error."""
    trainer, told = trainer_of(tmp_path), []

    def full(*_):
        raise OSError(28, "No space left on device", "training.npz")

    trainer.run(2)
    with monkeypatch.context() as patch:
        patch.setattr(saved, "save", full)
        patch.setattr(saved.Log, "write", full)
        for until in (3, 5):
            trainer.run(until, every=1, unsaved=told.append)
    assert len(told) == 1
    trainer.run(unsaved=told.append)
    lines = (tmp_path / "losses.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert trainer_of(tmp_path).losses == trainer.losses


def test_a_log_on_a_full_disk(tmp_path, monkeypatch):
    """Lines wait in memory until they can be written, each once and whole."""
    log = saved.Log(tmp_path / "losses.jsonl")
    log.add({"step": 1})
    log.write()
    log.add({"step": 2})
    with monkeypatch.context() as patch:

        class Full:
            def __init__(self, path, *_, **__):
                self.file = builtins_open(path, "a")

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self.file.close()

            def write(self, text):
                self.file.write(text[:5])
                self.file.flush()
                raise OSError(28, "No space left on device")

        builtins_open = open
        patch.setattr(saved, "open", Full, raising=False)
        with pytest.raises(OSError):
            log.write()
    assert (tmp_path / "losses.jsonl").read_text() == '{"step": 1}\n'
    log.add({"step": 3})
    log.write()
    assert (tmp_path / "losses.jsonl").read_text().split("\n")[1:3] == [
        '{"step": 2}',
        '{"step": 3}',
    ]


def test_without_a_way_to_tell_a_full_disk_is_an_error(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saved, "save", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.run(every=2)
    with pytest.raises(OSError, match="No space left"):  # nothing is saved at the end
        trainer_of(tmp_path).run(every=2, unsaved=lambda error: None)


@pytest.mark.parametrize("what", (KeyboardInterrupt, SystemExit, MemoryError))
def test_the_checkpoint_is_written_when_something_ends_the_training(tmp_path, what):
    whole = trainer_of(tmp_path / "whole")
    whole.run()

    def progress(step, loss):
        if step == 4:
            raise what

    stopped = trainer_of(tmp_path / "stopped")
    with pytest.raises(what):
        stopped.run(progress=progress)
    again = trainer_of(tmp_path / "stopped")
    assert again.step == 4
    again.run()
    assert again.losses == whole.losses


def test_a_step_that_is_cut_off_is_not_saved(tmp_path, monkeypatch):
    """Ctrl-C while the parameters change: the checkpoint keeps the state before."""
    trainer = trainer_of(tmp_path)
    trainer.run(until=2)
    update = AdamW._update

    def cut_off(self, name, *rest):
        if name == "final_norm":
            raise KeyboardInterrupt
        update(self, name, *rest)

    monkeypatch.setattr(AdamW, "_update", cut_off)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    monkeypatch.undo()
    again = trainer_of(tmp_path)
    assert again.step == 2
    again.run()


def test_no_number_and_a_smaller_rate(tmp_path, recwarn):
    """The checkpoint stays as it was, and the training can go on from it with other settings."""
    trainer_of(tmp_path).run(until=1)
    wild = trainer_of(tmp_path, rate=1e30, allow_change=True)
    with pytest.raises(ValueError, match=r"step 3: the loss is nan.*training.npz has an earlier"):
        wild.run()
    assert not recwarn.list
    with pytest.raises(CheckpointError, match="rate=0.01, expected 0.001.* or allow the change"):
        trainer_of(tmp_path, rate=1e-3)
    trainer = trainer_of(tmp_path, rate=1e-3, allow_change=True)
    assert trainer.step == 1 and trainer.losses == wild.losses[:1]
    trainer.run()
    assert np.isfinite(trainer.losses).all()


@pytest.mark.parametrize("until", (2, 6))
def test_a_spoilt_network_is_not_saved(tmp_path, recwarn, until):
    """A step can spoil the network, although its own loss was a number."""
    trainer_of(tmp_path).run(until=1)
    wild = trainer_of(tmp_path, rate=1e30, allow_change=True)
    with pytest.raises(ValueError, match=r"step 2: after it.* is nan: .*npz has an earlier"):
        wild.run(until, every=1)
    assert not recwarn.list
    assert trainer_of(tmp_path, rate=1e-3, allow_change=True).step == 1


def test_more_steps(tmp_path):
    trainer_of(tmp_path).run()
    more = trainer_of(tmp_path, steps=8, allow_change=True)
    assert more.step == 6
    more.run()
    assert trainer_of(tmp_path, steps=8).step == 8
