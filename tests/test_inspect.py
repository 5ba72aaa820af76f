"""What `llama2np inspect` says of each kind of checkpoint."""

import re

import numpy as np
import pytest

from llama2np.cli import main
from llama2np.formats import huggingface, llama2c
from llama2np.formats.checkpoint import Header
from llama2np.formats.write import write_bin
from llama2np.model.config import Config


def inspect(capsys, *arguments) -> str:
    assert main(["inspect", *map(str, arguments)]) == 0
    said = capsys.readouterr()
    assert not said.err
    return said.out


STORIES = "dim=64 hidden_dim=172 n_layers=5 n_heads=8 n_kv_heads=4 vocab_size=512 seq_len=512 "


@pytest.mark.parametrize(
    "path, expected",
    (
        ("stories260K/stories260K.bin", ("version 0, 1,056,540 bytes", STORIES, "260,032 param")),
        (
            "stories260K/stories260K.pt",
            ("llama2.c's train.py", STORIES, "classifier tied to the embedding"),
        ),
        ("stories260K/hf_pytorch_bin", ("Hugging Face", STORIES, "layers.*.w_down")),
        ("hf_llama_gqa_bf16_sharded", ("rope_theta=500000.0 norm_eps=1e-06", "660,352 param")),
        ("hf_llama_mha_fp32_tied/model.safetensors", ("model.layers.*.mlp", "(384, 128) float32")),
        (
            "meta_2shards_bf16",
            ("Meta", "3 x (128, 128) bfloat16, 98,304 bytes", "classifier not tied"),
        ),
        ("meta_2shards_bf16/consolidated.01.pth", ("torch file", "3 x (64, 128) bfloat16")),
        ("tiny_q80/gqa_untied_g64.bin", ("version 2", "Q8_0 in groups of 64", "int8")),
    ),
)
def test_each_kind(reference, capsys, path, expected):
    said = inspect(capsys, reference / path)
    for text in expected:
        assert text in said
    assert said.endswith("all values are finite\n")


def test_sizes_add_up(reference, capsys):
    said = inspect(capsys, reference / "stories260K/stories260K.bin")
    sizes = [int(text.replace(",", "")) for text in re.findall(r"([\d,]+) bytes\n", said)]
    assert sum(sizes[1:]) == 4 * 260_032


def test_the_error_of_each_quantized_tensor(reference, tmp_path, capsys):
    source = reference / "hf_llama_gqa_bf16_sharded"
    _, errors = write_bin(huggingface.read(source), tmp_path / "q.bin", 2)
    write_bin(huggingface.read(source), tmp_path / "f.bin", 1)
    for original in (source, tmp_path / "f.bin"):
        said = inspect(capsys, tmp_path / "q.bin", "--against", original)
        found = dict(re.findall(r"^(\S+) .* max error (\S+),", said, re.MULTILINE))
        assert found.keys() > errors.keys() and found["layers.0.attn_norm"] == "0"
        for name, error in errors.items():
            assert (
                float(found[name]) == pytest.approx(error.largest, rel=1e-5) and error.largest > 0
            )


def test_values_that_are_not_finite(tmp_path, write, capsys):
    path = write("nan.bin", Header(1, Config(8, 8, 2, 2, 2, 9, 5), True))
    data = bytearray(path.read_bytes())
    data[-4:] = np.float32(np.inf).tobytes()
    path.write_bytes(data)
    said = inspect(capsys, path)
    assert re.findall(r"^(\S+) .*NOT FINITE$", said, re.MULTILINE) == ["layers.*.w_up"]
    assert said.endswith("some values are nan or inf\n")


@pytest.mark.parametrize(
    "name, data, match",
    (
        ("none.bin", None, "none.bin: No such file"),
        ("x.bin", b"once upon a time there was a file", "not a llama2.c checkpoint"),
        ("x.pt", b"PK\3\4", "truncated"),
        ("x.pth", b"\x80\2x", "before 1.6"),
        ("x.safetensors", b"", "not a safetensors file"),
        ("", None, "without params.json"),
    ),
)
def test_what_is_no_checkpoint(tmp_path, capsys, name, data, match):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    assert main(["inspect", str(tmp_path / name)]) == 1
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and match in told.err and not told.out


def test_a_bin_is_what_it_was_made_from(reference):
    """Reading a .bin and reading its source give the same network."""
    a = llama2c.read_bin(reference / "stories260K/stories260K.bin")
    b = huggingface.read(reference / "stories260K/hf_pytorch_bin").adjacent()
    assert a.config == b.config and a.tied and b.tied and a.tensors.keys() == b.tensors.keys()
    for name, tensor in a.tensors.items():
        for x, y in zip(tensor.blocks(), b.tensors[name].blocks(), strict=True):
            np.testing.assert_array_equal(x, y)
