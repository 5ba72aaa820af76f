"""Meta's folders, and other programs' checkpoints."""

import json
import os
import re

import numpy as np
import pytest
from hf_folder import CONFIG, random_tensors, read, refused

from llama2np.formats import llama2c, meta
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.huggingface.writing import llama_names
from llama2np.formats.write import write_bin
from llama2np.model.config import Config
from tools.hostile_valid import parts_of
from tools.torch_files import Tensor, pickled, write_archive

# Meta's


def meta_folder(path, shards, embedding_axis=1, **fields):
    """The random network of `random_tensors` in Meta's format, in `shards` files."""
    path.mkdir()
    params = {"dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5}
    (path / "params.json").write_text(json.dumps(params | fields))
    names = {ours: theirs for theirs, ours in meta._NAMES.items()}
    by_hf = dict(llama_names(CONFIG))
    random = random_tensors()
    pieces: list[dict] = [{} for _ in range(shards)]
    for ours, theirs in by_hf.items():
        name, layer = parts_of(ours)
        meta_name = (f"layers.{layer}." if layer else "") + names[name] + ".weight"
        axis = {"wo": 1, "w_down": 1, "embedding": embedding_axis}.get(name, 0)
        values = random[theirs]
        dealt = np.split(values, shards, axis) if values.ndim == 2 else [values] * shards
        for piece, part in zip(pieces, dealt, strict=True):
            piece[meta_name] = np.ascontiguousarray(part)
    for i, piece in enumerate(pieces):
        records = {n: Tensor(str(k), "float32", v.shape) for k, (n, v) in enumerate(piece.items())}
        records["rope.freqs"] = Tensor("0", "float32", (2,))
        files = {f"data/{records[n].key}": v.tobytes() for n, v in piece.items()}
        write_archive(path / f"consolidated.{i:02d}.pth", {"data.pkl": pickled(records)} | files)
    return path


@pytest.mark.parametrize("shards, axis", ((1, 1), (2, 1), (2, 0), (4, 1), (4, 0)))
def test_shards_of_meta(tmp_path, shards, axis):
    """Llama 3 deals out the vocabulary of tok_embeddings, Llama 2 its columns."""
    source = meta.read(meta_folder(tmp_path / "m", shards, axis))
    assert source.config == Config(16, 24, 2, 4, 2, 40, 2048) and not source.tied
    random = random_tensors()
    for ours, theirs in llama_names(CONFIG):
        np.testing.assert_array_equal(read(source.tensors[ours]), random[theirs])


def test_numbers_of_meta(tmp_path):
    source = meta.read(meta_folder(tmp_path / "m", 2, rope_theta=5e5, norm_eps=1e-6))
    assert source.config == Config(16, 24, 2, 4, 2, 40, 2048, 5e5, 1e-6)
    write_bin(source.with_seq_len(77), tmp_path / "x.bin", 2)
    assert llama2c.read_bin(tmp_path / "x.bin").config == Config(16, 24, 2, 4, 2, 40, 77, 5e5, 1e-6)


@pytest.mark.parametrize(
    "missing, match",
    (
        (0, "consolidated.00.pth: missing"),
        (1, "consolidated.01.pth: missing"),
        (3, "is a shard missing"),
    ),
)
def test_missing_shards_of_meta(tmp_path, capsys, missing, match):
    path = meta_folder(tmp_path / "m", 4)
    (path / f"consolidated.{missing:02d}.pth").unlink()
    assert match in refused(capsys, tmp_path, "--meta-llama", path)


def test_a_truncated_shard_of_meta(tmp_path, capsys):
    path = meta_folder(tmp_path / "m", 2)
    shard = path / "consolidated.01.pth"
    shard.write_bytes(shard.read_bytes()[:1000])
    told = refused(capsys, tmp_path, "--meta-llama", path)
    assert "consolidated.01.pth" in told and "truncated" in told


@pytest.mark.parametrize(
    "fields, match",
    (
        ({"use_scaled_rope": True}, "use_scaled_rope=True: RoPE scaling"),
        ({"moe": {"num_experts": 8}}, "mixture of experts"),
        ({"dim": "16"}, "dim='16'"),
        ({"n_heads": 5}, "n_heads=5 does not divide"),
        ({"n_layers": 3}, "there is no attn_norm of layer 2"),
        ({"n_layers": 2**40}, "n_layers must be at most 1,024"),
        ({"n_layers": 1}, r"does not use attn_norm of layer 1"),
    ),
    ids=str,
)
def test_params_that_cannot_be_run(tmp_path, capsys, fields, match):
    path = meta_folder(tmp_path / "m", 2, **fields)
    assert re.search(match, refused(capsys, tmp_path, "--meta-llama", path))


def test_an_empty_folder(tmp_path, capsys):
    assert "params.json: No such file" in refused(capsys, tmp_path, "--meta-llama", tmp_path)
    (tmp_path / "params.json").write_text('{"dim": 16}')
    assert "no consolidated.00.pth" in refused(capsys, tmp_path, "--meta-llama", tmp_path)
    (tmp_path / "consolidated.safetensors").touch()
    assert "get the model in Hugging Face" in refused(capsys, tmp_path, "--meta-llama", tmp_path)


# llama2.c's trainer


@pytest.mark.parametrize(
    "content, match",
    (
        ({"model": {}}, "has no model_args, expected a checkpoint of llama2.c's train.py"),
        ({"model_args": {}, "state": 1}, r"has no model, expected a checkpoint of llama2.c's \S+$"),
        ({"model": {}, "model_args": {"dim": 1, "n_heads": 1, "n_layers": 1}}, "no matrix"),
        ({"model": {}, "model_args": {"dim": "16", "n_heads": 4}}, "dim='16'"),
        ({"model": {}, "model_args": {"dim": 16}}, "n_heads=None, expected a number"),
        ({"model": {}, "model_args": {"n_heads": 2**31}}, "n_heads=2147483648, expected a number"),
        ({"model": 3, "model_args": {}}, "expected a dictionary of tensors, found int"),
        ({"model": {}, "model_args": 5}, "model_args is 5, expected a dictionary"),
        (7, "has no model"),
    ),
    ids=str,
)
def test_checkpoints_of_something_else(tmp_path, capsys, content, match):
    write_archive(tmp_path / "x.pt", {"data.pkl": pickled(content)})
    assert re.search(match, refused(capsys, tmp_path, "--checkpoint", tmp_path / "x.pt"))


def test_a_truncated_bin(reference, tmp_path, capsys):
    data = (reference / "stories260K/stories260K.bin").read_bytes()
    (tmp_path / "x.bin").write_bytes(data[:-4])
    assert "truncated download?" in refused(capsys, tmp_path, "--bin", tmp_path / "x.bin")
    assert os.listdir(tmp_path) == ["x.bin"]
    with pytest.raises(CheckpointError):
        llama2c.read_bin(tmp_path / "x.bin")
