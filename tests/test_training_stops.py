"""A training that stops, for whatever reason, goes on from its checkpoint."""

import io
import json
import os
import zipfile

import numpy as np
import pytest
from trainings import Random, trained, trainer_of

from llama2np.formats.checkpoint import CheckpointError
from llama2np.learning import saved
from llama2np.learning.optimizer import AdamW


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


@pytest.fixture(scope="module")
def harmless(tmp_path_factory):
    """The arrays of a checkpoint after two steps, by name."""
    path = tmp_path_factory.mktemp("trained") / "a.npz"
    trained(path).run(until=2)
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_checkpoint(tmp_path, harmless, name):
    """One clear line, before anything is read that is larger than expected, or changed."""
    words, changes, compression = HOSTILE[name]
    path, arrays = tmp_path / "a.npz", harmless | changes
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
