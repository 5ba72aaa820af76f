"""Meta's and Hugging Face's folders: names, shards, row orders, and what is refused."""

import json
import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from llama2np.cli.export import main as export
from llama2np.formats import huggingface, llama2c, meta
from llama2np.formats.checkpoint import CheckpointError, CheckpointWarning
from llama2np.formats.huggingface.writing import llama_names
from llama2np.formats.source import Stored, concatenated, halved, interleaved
from llama2np.formats.write import write_bin
from llama2np.model.config import Config
from tools.hostile_valid import parts_of
from tools.torch_files import Tensor, pickled, write_archive

CONFIG = Config(16, 24, 2, 4, 2, 40, 64)
HF_CONFIG = replace(CONFIG, rope_halves=1)  # the order of rows in wq and wk
HF = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
SHAPES = {
    "embed_tokens": (40, 16),
    "norm": (16,),
    "lm_head": (40, 16),
    "q_proj": (16, 16),
    "k_proj": (8, 16),
    "v_proj": (8, 16),
    "o_proj": (16, 16),
    "gate_proj": (24, 16),
    "up_proj": (24, 16),
    "down_proj": (16, 24),
    "input_layernorm": (16,),
    "post_attention_layernorm": (16,),
}


def read(tensor) -> np.ndarray:
    return np.concatenate(list(tensor.blocks()))


def random_tensors() -> dict:
    random = np.random.default_rng(0)
    return {
        theirs: random.standard_normal(SHAPES[theirs.split(".")[-2]], np.float32)
        for _, theirs in llama_names(CONFIG)
    }


@pytest.fixture
def folder(tmp_path):
    """Write a Hugging Face folder: folder(tensors, config field=value ...) -> its path."""

    def write(tensors=None, **fields):
        path = tmp_path / "hf"
        path.mkdir(exist_ok=True)
        save_file(tensors or random_tensors(), path / "model.safetensors")
        (path / "config.json").write_text(json.dumps(HF | fields))
        return path

    return write


def refused(capsys, tmp_path, flag, path) -> str:
    """Export, expecting one line and no file; return the line."""
    before = sorted(tmp_path.rglob("*"))
    assert export([str(tmp_path / "out.bin"), flag, str(path), "--version", "1"], "export.py") == 1
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and not told.out
    assert sorted(tmp_path.rglob("*")) == before
    return told.err


# Row orders


def test_rows_are_interleaved_in_each_head():
    """Hugging Face has a head's even rows first: 0 2 4 6 1 3 5 7."""
    theirs = np.array([0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15], np.float32)
    tensor = interleaved(Stored.view(theirs[:, None]), 8)
    assert read(tensor).ravel().tolist() == list(range(16))
    assert read(halved(tensor, 8)).ravel().tolist() == theirs.tolist()
    for start in range(16):  # blocks need not end where heads do
        for end in range(start + 1, 17):
            assert tensor.read(start, end).ravel().tolist() == list(range(start, end))


def test_keys_are_interleaved_by_their_own_number_of_heads(folder):
    """llama2.c takes the number of query heads (llama2.c #550)."""
    tensors = random_tensors()
    source = huggingface.read(folder(tensors))
    for ours, theirs, heads in (("wq", "q_proj", 4), ("wk", "k_proj", 2)):
        w = tensors[f"model.layers.1.self_attn.{theirs}.weight"]
        np.testing.assert_array_equal(read(source.tensors[f"layers.1.{ours}"]), w)
        expected = w.reshape(heads, 2, 2, 16).transpose(0, 2, 1, 3).reshape(w.shape)
        np.testing.assert_array_equal(read(source.adjacent().tensors[f"layers.1.{ours}"]), expected)
    w = tensors["model.layers.1.self_attn.v_proj.weight"]
    np.testing.assert_array_equal(read(source.tensors["layers.1.wv"]), w)


@pytest.mark.parametrize("axis", (0, 1))
def test_shards_are_joined(axis):
    random = np.random.default_rng(0)
    parts = [random.standard_normal((5, 3) if axis else (n, 3), np.float32) for n in (5, 2, 4)]
    joined = concatenated([Stored.view(part) for part in parts], axis)
    expected = np.concatenate(parts, axis)
    assert joined.shape == expected.shape and joined.nbytes == expected.nbytes
    np.testing.assert_array_equal(read(joined), expected)
    for start in range(len(expected)):
        np.testing.assert_array_equal(joined.read(start, start + 1), expected[start : start + 1])
    with pytest.raises(ValueError, match="do not fit"):
        concatenated([Stored.view(parts[0]), Stored.view(np.zeros((4, 4), np.float32))], axis)


# config.json


def test_both_spellings_of_rope_theta(folder):
    assert huggingface.read(folder()).config == HF_CONFIG
    assert huggingface.read(folder(rope_theta=5e5)).config.rope_theta == 5e5
    new = {"rope_theta": 5e5, "rope_type": "default"}
    assert huggingface.read(folder(rope_parameters=new)).config.rope_theta == 5e5
    old = huggingface.read(folder(rope_theta=1e6, rope_scaling=None, head_dim=4, torch_dtype="x"))
    assert old.config.rope_theta == 1e6


def test_defaults_of_fields_that_are_missing(folder):
    path = folder()
    kept = {
        name: value
        for name, value in HF.items()
        if name not in ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps")
    }
    tensors = random_tensors()
    for i in range(2):
        for name in "kv":
            tensors[f"model.layers.{i}.self_attn.{name}_proj.weight"] = np.zeros((16, 16), "f4")
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(kept))
    assert huggingface.read(path).config == replace(
        HF_CONFIG, n_kv_heads=4, seq_len=2048, norm_eps=1e-6
    )


@pytest.mark.parametrize(
    "fields, match",
    (
        ({"model_type": "t5"}, "model_type='t5', expected one of llama, mistral, qwen2"),
        ({"model_type": "mixtral"}, "has layers.0.mlp.down_proj.weight, which is not part of"),
        ({"model_type": None}, "model_type=None"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling='linear', a .bin has no"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling: has no factor"),
        (
            {"rope_parameters": {"rope_type": "new"}},
            "'new': this RoPE scaling is not",
        ),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rotary_dim=2, a .bin has no field"),
        ({"rope_parameters": [1]}, r"rope_parameters=\[1\], expected an object"),
        ({"rope_parameters": {"rope_theta": "x"}}, "rope_theta='x', expected a number"),
        ({"attention_bias": True}, "have no layers.0.self_attn.q_proj.bias"),
        ({"mlp_bias": True}, "have no layers.0.mlp.gate_proj.bias"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu', expected 'silu'"),
        ({"head_dim": 8}, r"wq of layer 0 has shape \(16, 16\), expected \(32, 16\)"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"sliding_window": 4096}, "sliding_window=4096"),
        ({"partial_rotary_factor": 0.5}, "rotary_dim=2, a .bin has no field"),
        ({"hidden_size": "16"}, "hidden_size='16', expected a whole number above 0"),
        ({"hidden_size": True}, "hidden_size=True"),
        ({"hidden_size": 16.0}, "hidden_size=16.0"),
        ({"hidden_size": -16}, "hidden_size=-16"),
        ({"hidden_size": None}, "has no hidden_size"),
        ({"hidden_size": 10**40}, "hidden_size=1000"),
        ({"num_hidden_layers": 3}, "there is no attn_norm of layer 2"),
        ({"num_hidden_layers": 10**9}, "n_layers must be at most 1,024, not 1,000,000,000"),
        ({"num_hidden_layers": 22}, "num_hidden_layers=22, found 21 tensors"),
        ({"num_attention_heads": 3}, "n_heads=3 does not divide dim=16"),
        ({"vocab_size": 41}, r"embedding has shape \(40, 16\), expected \(41, 16\)"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan"),
    ),
    ids=str,
)
def test_configs_that_cannot_be_run(folder, tmp_path, capsys, fields, match):
    assert re.search(match, refused(capsys, tmp_path, "--hf", folder(**fields)))


def test_tied_weights(folder):
    tensors = random_tensors()
    head = tensors.pop("lm_head.weight")
    source = huggingface.read(folder(tensors, tie_word_embeddings=True))
    assert source.tied and "classifier" not in source.tensors
    # transformers 5 uses the file's, and says so: test_convert_head.py
    with pytest.warns(CheckpointWarning, match="an lm_head of other values, which is used"):
        again = huggingface.read(
            folder(tensors | {"lm_head.weight": head}, tie_word_embeddings=True)
        )
    assert not again.tied and again.size == source.size + head.size
    same = {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    assert huggingface.read(folder(tensors | same)).tied
    assert not huggingface.read(folder(tensors | {"lm_head.weight": head})).tied


@pytest.mark.parametrize(
    "change, match",
    (
        ({"lm_head.weight": None}, "has no lm_head.weight"),
        ({"model.layers.1.mlp.up_proj.weight": None}, "there is no w_up of layer 1"),
        ({"model.norm.weight": np.zeros(15, "f4")}, r"final_norm has shape \(15,\)"),
        (
            {"model.layers.0.self_attn.q_proj.weight": np.zeros(16, "f4")},
            r"wq of layer 0 has shape \(16,\)",
        ),
        ({"model.layers.0.self_attn.q_proj.weight": np.zeros((15, 16), "f4")}, r"\(15, 16\)"),
        ({"model.layers.0.self_attn.q_proj.bias": np.zeros(16, "f4")}, "q_proj.bias"),
        ({"model.layers.2.mlp.up_proj.weight": np.zeros((24, 16), "f4")}, "layers.2.mlp.up_proj"),
    ),
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_tensors_that_are_missing_or_too_many(folder, tmp_path, capsys, change, match):
    tensors = {k: v for k, v in (random_tensors() | change).items() if v is not None}
    assert re.search(match, refused(capsys, tmp_path, "--hf", folder(tensors)))


def test_tables_of_old_versions_are_left_out(folder):
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(2, "f4")}
    assert huggingface.read(folder(random_tensors() | extra)).config == HF_CONFIG


# Shards


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


def test_a_folder_without_weights(folder, tmp_path, capsys):
    path = folder()
    (path / "model.safetensors").unlink()
    assert "has no model.safetensors nor" in refused(capsys, tmp_path, "--hf", path)


@pytest.mark.parametrize("text", ("", "[]", "{", '{"a":1,"a":2}', "[" * 100_000), ids=range(5))
def test_a_config_that_is_no_object(folder, tmp_path, capsys, text):
    path = folder()
    (path / "config.json").write_text(text)
    assert "config.json: " in refused(capsys, tmp_path, "--hf", path)


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


# llama2.c's trainer


@pytest.mark.parametrize(
    "content, match",
    (
        ({"model": {}}, "has no model and model_args"),
        ({"model": {}, "model_args": {"dim": 1, "n_heads": 1, "n_layers": 1}}, "no matrix"),
        ({"model": {}, "model_args": {"dim": "16", "n_heads": 4}}, "dim='16'"),
        ({"model": {}, "model_args": {"dim": 16}}, "n_heads=None, expected a number"),
        ({"model": {}, "model_args": {"n_heads": 2**31}}, "n_heads=2147483648, expected a number"),
        ({"model": 3, "model_args": {}}, "expected a dictionary of tensors, found int"),
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
