"""Meta's and Hugging Face's folders: names, shards, row orders, and what is refused."""

import json
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hf_folder import HF, HF_CONFIG, random_tensors, read, refused, write_folder
from safetensors.numpy import save_file

from llama2np.formats import huggingface
from llama2np.formats.checkpoint import CheckpointWarning
from llama2np.formats.source import Stored, concatenated, halved, interleaved


@pytest.fixture
def folder(tmp_path):
    """Write a Hugging Face folder: folder(tensors, config field=value ...) -> its path."""
    return partial(write_folder, tmp_path / "hf")


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
        (
            {"rope_parameters": {"partial_rotary_factor": 0.5}},
            "factor=0.5, expected 1: transformers ig",
        ),
        ({"rope_parameters": [1]}, r"rope_parameters=\[1\], expected an object"),
        ({"rope_parameters": {"rope_theta": "x"}}, "rope_theta='x', expected a number"),
        ({"attention_bias": True}, "have no layers.0.self_attn.q_proj.bias"),
        ({"mlp_bias": True}, "have no layers.0.mlp.gate_proj.bias"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu', expected 'silu'"),
        ({"head_dim": 8}, r"wq of layer 0 has shape \(16, 16\), expected \(32, 16\)"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"quantization": {"bits": 4}}, "quantization={.bits.: 4}, expected None: not supported"),
        ({"sliding_window": 4096}, "sliding_window=4096"),
        (
            {"partial_rotary_factor": 0.5},
            "factor=0.5, expected 1: transformers ignores it in a llama",
        ),
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


def test_a_folder_without_weights(folder, tmp_path, capsys):
    path = folder()
    (path / "model.safetensors").unlink()
    assert "has no model.safetensors nor" in refused(capsys, tmp_path, "--hf", path)


@pytest.mark.parametrize("text", ("", "[]", "{", '{"a":1,"a":2}', "[" * 100_000), ids=range(5))
def test_a_config_that_is_no_object(folder, tmp_path, capsys, text):
    path = folder()
    (path / "config.json").write_text(text)
    assert "config.json: " in refused(capsys, tmp_path, "--hf", path)
