"""Hugging Face folders with tensors in several files: safetensors with an index, and pickles."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
from hf_folder import random_tensors, read, refused, write_folder
from safetensors.numpy import save_file

from llama2np.formats import huggingface
from tools.torch_files import Tensor, pickled, write_archive


@pytest.fixture
def folder(tmp_path):
    """Write a Hugging Face folder: folder(tensors, config field=value ...) -> its path."""
    return partial(write_folder, tmp_path / "hf")


def sharded(path, change=None):
    """Deal the tensors of a folder out to two files and an index."""
    tensors = random_tensors()
    names = list(tensors)
    places = {}
    for i, some in enumerate((names[:9], names[9:])):
        places |= dict.fromkeys(some, f"part-{i}.safetensors")
        save_file({name: tensors[name] for name in some}, path / f"part-{i}.safetensors")
    (path / "model.safetensors").unlink()
    index = {"weight_map": places | (change or {})}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def test_an_index_and_its_shards(folder):
    expected = huggingface.read(folder())
    expected = {name: read(tensor) for name, tensor in expected.tensors.items()}
    source = huggingface.read(sharded(folder()))
    for name, tensor in source.tensors.items():
        np.testing.assert_array_equal(read(tensor), expected[name])


def test_a_missing_shard(folder, tmp_path, capsys):
    path = sharded(folder())
    (path / "part-1.safetensors").unlink()
    assert "part-1.safetensors: missing" in refused(capsys, tmp_path, "--hf", path)


def test_shards_without_their_index(folder, tmp_path, capsys):
    path = folder()
    (path / "model.safetensors").rename(path / "model-00001-of-00002.safetensors")
    found = refused(capsys, tmp_path, "--hf", path)
    assert "has a shard of the weights, but no model.safetensors.index.json" in found


def test_a_broken_shard(folder, tmp_path, capsys):
    path = sharded(folder())
    shard = path / "part-1.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "part-1.safetensors: the tensors need" in refused(capsys, tmp_path, "--hf", path)


@pytest.mark.parametrize(
    "place",
    (
        "../secret.safetensors",
        "/etc/passwd",
        "sub/part.safetensors",
        "..",
        "",
        "a\\b",
        "C:x",
        "a\0b",
    ),
)
def test_an_index_that_points_outside_the_folder(folder, tmp_path, capsys, place):
    path = sharded(folder(), {"model.norm.weight": place})
    shutil.copy(path / "part-0.safetensors", tmp_path / "secret.safetensors")
    told = refused(capsys, tmp_path, "--hf", path)
    assert "index.json: names" in told and "expected a file beside it" in told


@pytest.mark.parametrize("places", (None, [], {"a": 1}, {"a": None}), ids=str)
def test_an_index_without_places(folder, tmp_path, capsys, places):
    path = sharded(folder())
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert "has no weight_map" in refused(capsys, tmp_path, "--hf", path)


def test_an_index_that_is_wrong_about_a_shard(folder, tmp_path, capsys):
    path = sharded(folder(), {"model.norm.weight": "part-1.safetensors"})
    other = sharded(folder(), {"model.embed_tokens.weight": "part-1.safetensors"})
    assert path == other
    told = refused(capsys, tmp_path, "--hf", path)
    assert "has no model.embed_tokens.weight" in told


def test_pickled_shards(folder, tmp_path):
    """pytorch_model-00001-of-00002.bin and so on, and their index."""
    path = folder()
    expected = {name: read(t) for name, t in huggingface.read(path).tensors.items()}
    (path / "model.safetensors").unlink()
    tensors, places = random_tensors(), {}
    for number in (1, 2):
        some = list(tensors)[number - 1 :: 2]
        records = {
            name: Tensor(str(i), "float32", tensors[name].shape) for i, name in enumerate(some)
        }
        files = {f"data/{r.key}": tensors[name].tobytes() for name, r in records.items()}
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        write_archive(path / file, {"data.pkl": pickled(records)} | files)
        places |= dict.fromkeys(some, file)
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    for name, tensor in huggingface.read(path).tensors.items():
        np.testing.assert_array_equal(read(tensor), expected[name])
