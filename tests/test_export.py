"""Sources to .bin and back out: llama2.c's exporter and transformers are the authority."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from llama2np.cli.export import main as export
from llama2np.formats import checkpoint, huggingface, llama2c, meta
from llama2np.formats.checkpoint import CheckpointError, Header, read_header
from llama2np.formats.rope_tables import rope_tables
from llama2np.formats.write import write_bin, write_huggingface
from llama2np.model.config import Config
from llama2np.model.transformer import State, Transformer

ROOT = Path(__file__).parents[1]
READERS = {"--checkpoint": llama2c.read_pt, "--meta-llama": meta.read, "--hf": huggingface.read}
STORIES = "stories260K/stories260K"
CASES = [
    (source, option, version)
    for source, option in (
        ("stories260K/stories260K.pt", "--checkpoint"),
        ("meta_2shards_bf16", "--meta-llama"),
        ("meta_gqa_2shards_fp16", "--meta-llama"),
        ("hf_llama_mha_fp32_tied", "--hf"),
    )
    for version in (0, 1, 2)
]
DIFFERENT = ("stories260K/stories260K.pt", "--checkpoint", 2)  # runq.c computes its file wrongly


def test_the_cases_are_those_of_the_reference(reference):
    expected = json.loads((reference / "export_expected.json").read_text())
    assert {(case["source"], case["option"], case["version"]) for case in expected} == set(CASES)


@pytest.mark.parametrize("case", [case for case in CASES if case != DIFFERENT], ids=str)
def test_llama2c_writes_the_same_bytes(reference, tmp_path, case):
    source, option, version = case
    for expected in json.loads((reference / "export_expected.json").read_text()):
        if (expected["source"], expected["option"], expected["version"]) == case:
            break
    arguments = [
        str(tmp_path / "x.bin"),
        option,
        str(reference / source),
        "--version",
        str(version),
    ]
    assert export(arguments, "export.py") == 0
    data = (tmp_path / "x.bin").read_bytes()
    assert len(data) == expected["bytes"]
    assert hashlib.sha256(data).hexdigest() == expected["sha256"]
    assert os.listdir(tmp_path) == ["x.bin"]


def test_a_group_size_that_llama2c_gets_wrong(reference, tmp_path):
    """hidden_dim is 172: 64 does not divide it, 4 does."""
    source, option, version = DIFFERENT
    header, errors = write_bin(READERS[option](reference / source), tmp_path / "x.bin", version)
    assert header.group_size == read_header(tmp_path / "x.bin").group_size == 4
    assert 0 < max(error.largest for error in errors.values()) < 0.01
    assert {
        "embedding",
        "layers.0.wq",
        "layers.4.w_down",
    } <= errors.keys() and "final_norm" not in errors


def test_pickled_hugging_face_gives_the_trainers_file(reference, tmp_path):
    write_bin(huggingface.read(reference / "stories260K/hf_pytorch_bin"), tmp_path / "x.bin", 0)
    assert (tmp_path / "x.bin").read_bytes() == (reference / f"{STORIES}.bin").read_bytes()


@pytest.mark.parametrize("version", (0, 1, 2))
def test_from_bin_is_as_from_the_source(reference, tmp_path, version):
    write_bin(llama2c.read_bin(reference / f"{STORIES}.bin"), tmp_path / "a.bin", version)
    write_bin(llama2c.read_pt(reference / f"{STORIES}.pt"), tmp_path / "b.bin", version)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()


def exported(source, path, version):
    write_bin(source, path, version)
    config, weights = checkpoint.load(path)
    return Transformer(config, weights)


@pytest.mark.compiled
@pytest.mark.parametrize("name", ("hf_llama_gqa_bf16_sharded", "hf_llama_mha_fp32_tied"))
def test_transformers_gives_the_same_logits(reference, tmp_path, name):
    """rope_theta, norm_eps and grouped queries survive, or nothing would agree."""
    model = exported(huggingface.read(reference / name), tmp_path / "x.bin", 1)
    expected = np.load(reference / name / "expected.npz")
    logits = model.forward(expected["tokens"], State(model.config), all_logits=True)
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=2e-4)


@pytest.mark.compiled
@pytest.mark.parametrize("name", ("hf_llama_gqa_bf16_sharded", "hf_llama_mha_fp32_tied"))
def test_int8_stays_near(reference, tmp_path, name):
    source = huggingface.read(reference / name)
    expected = np.load(reference / name / "expected.npz")
    model = exported(source, tmp_path / "x.bin", 2)
    logits = model.forward(expected["tokens"], State(model.config), all_logits=True)
    assert 0.001 < np.abs(logits - expected["logits"]).mean() < 0.05  # they spread by 0.9
    assert (logits.argmax(1) == expected["logits"].argmax(1)).mean() > 0.9


@pytest.mark.parametrize("name", ("hf_llama_gqa_bf16_sharded", "hf_llama_mha_fp32_tied"))
def test_hugging_face_and_back(reference, tmp_path, name):
    source = huggingface.read(reference / name)
    write_bin(source, tmp_path / "a.bin", 1)
    write_huggingface(llama2c.read_bin(tmp_path / "a.bin"), tmp_path / "hf")
    again = huggingface.read(tmp_path / "hf")
    assert again.config == source.config and again.tied == source.tied
    write_bin(again, tmp_path / "b.bin", 1)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()


def test_the_safetensors_package_reads_what_we_write(reference, tmp_path):
    name = "hf_llama_mha_fp32_tied"
    write_huggingface(huggingface.read(reference / name), tmp_path / "hf")
    ours = load_file(tmp_path / "hf" / "model.safetensors")
    theirs = load_file(reference / name / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        np.testing.assert_array_equal(ours[key], tensor)


@pytest.mark.parametrize("flag, dtype", (("fp16", "float16"), ("bf16", "bfloat16")))
def test_half_precision_folders(reference, tmp_path, flag, dtype):
    source = reference / "hf_llama_gqa_bf16_sharded"
    arguments = [str(tmp_path / "hf"), "--hf", str(source), "--version", "-1", "--dtype", flag]
    assert export(arguments, "export.py") == 0
    assert json.loads((tmp_path / "hf/config.json").read_text())["dtype"] == dtype
    again, original = huggingface.read(tmp_path / "hf"), huggingface.read(source)
    for name, tensor in original.tensors.items():
        assert again.tensors[name].dtype == dtype
        for a, b in zip(again.tensors[name].blocks(), tensor.blocks(), strict=True):
            np.testing.assert_allclose(a, b, rtol=0 if dtype == "bfloat16" else 1e-3, atol=1e-7)


def test_values_beyond_half_precision(tmp_path, write):
    header = Header(1, Config(8, 8, 1, 2, 2, 9, 5), True)
    path = write("big.bin", header)
    data = bytearray(path.read_bytes())
    data[-4:] = np.float32(1e5).tobytes()
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="float16"):
        write_huggingface(llama2c.read_bin(path), tmp_path / "hf", "float16")
    assert not (tmp_path / "hf").exists()


@pytest.mark.filterwarnings("ignore")  # of packages that are not ours
def test_transformers_loads_the_folder(reference, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    expected = np.load(reference / "llama2c_logits.npz")
    write_huggingface(llama2c.read_bin(reference / f"{STORIES}.bin"), tmp_path / "hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tokens = torch.tensor(expected["stories260K_tokens"].astype(np.int64))
    with torch.no_grad():
        logits = model(tokens[None]).logits[0].numpy()
    np.testing.assert_allclose(logits, expected["stories260K_logits"], rtol=0, atol=2e-4)


def test_tokenizer(reference, tmp_path):
    model = reference / "llama32k/tokenizer.model"
    assert export([str(tmp_path / "t.bin"), "--tokenizer", str(model)], "export.py") == 0
    expected = (reference / "llama32k/tokenizer.bin").read_bytes()
    assert (tmp_path / "t.bin").read_bytes() == expected


def test_rope_tables_of_the_public_checkpoint(reference):
    header, tensors = checkpoint.open_tensors(reference / f"{STORIES}.bin")
    both = np.concatenate(list(rope_tables(header.config))).reshape(2, header.config.seq_len, -1)
    np.testing.assert_array_equal(both, tensors["rope_tables"])
    exact = np.arange(header.config.seq_len)  # the first pair turns by one radian each position
    np.testing.assert_allclose(tensors["rope_tables"][0][:, 0], np.cos(exact), atol=1e-7)


# The command line


def test_what_is_said(reference, tmp_path, capsys):
    source, path = str(reference / f"{STORIES}.bin"), str(tmp_path / "x.bin")
    assert export([path, "--bin", source, "--version", "2", "--seq-len", "100"], "export.py") == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"wrote {path}: version 2, ") and said.out.count("\n") == 1
    assert "group size 4 to fit dim=64 and hidden_dim=172, max quantization group error" in said.out
    assert not said.err and read_header(path).config.seq_len == 100


@pytest.mark.parametrize(
    "arguments, match",
    (
        ([], "filepath"),
        (["x.bin"], "--checkpoint"),
        (["x.bin", "--hf", "a", "--bin", "b"], "not allowed with"),
        (["x.bin", "--bin", "b", "--version", "3"], "--version"),
        (["x.bin", "--bin", "b", "--dtype", "fp16"], "--version -1"),
        (["x.bin", "--bin", "b", "--seq-len", "0"], "--seq-len"),
        (["x.bin", "--bin", "none.bin"], "none.bin: No such file"),
        (["x.bin", "--hf", "none"], "config.json: No such file"),
        (["x.bin", "--tokenizer", "none.bin"], "none.bin: No such file"),
    ),
)
def test_mistakes_are_told_in_one_line(arguments, match, capsys, tmp_path, monkeypatch):
    import re

    monkeypatch.chdir(tmp_path)
    assert export(arguments, "export.py") == 1
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and told.err.startswith("export.py: ") and not told.out
    assert re.search(match, told.err)
    assert not os.listdir(tmp_path)


def test_the_script(reference, tmp_path):
    arguments = [str(tmp_path / "x.bin"), "--checkpoint", str(reference / f"{STORIES}.pt")]
    done = subprocess.run([sys.executable, "-B", ROOT / "export.py", *arguments], check=True)
    assert done.returncode == 0
    assert (tmp_path / "x.bin").read_bytes() == (reference / f"{STORIES}.bin").read_bytes()
