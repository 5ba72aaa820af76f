"""Networks of every format as GGUF files, and GGUF files in other formats."""

import numpy as np
import pytest

from llama2np import export
from llama2np.cli import main
from llama2np.formats import checkpoint, gguf, inspection
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.gguf.from_source import write_gguf
from llama2np.formats.gguf.source import read_source
from llama2np.model.transformer import State, Transformer

# The reference networks have no tokenizer beside them.
pytestmark = pytest.mark.filterwarnings("ignore:.*written without a tokenizer:Warning")

ARCHITECTURES = {  # folders of Hugging Face, and what they are in GGUF
    **{"gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3", "gpt2": "gpt2"},
    **{"gptneox_parallel": "gptneox", "gptneox_sequential": "gptneox", "phi2": "phi2"},
    **{"llama3_rope": "llama", "llama_bias": "llama", "llama_rope_yarn": "llama"},
    **{"mistral_swa": "llama", "mixtral": "llama", "phi3_longrope": "phi3", "qwen3": "qwen3"},
    **{"qwen2_tied": "qwen2", "qwen2_yarn": "qwen2"},
}
REFUSED = {
    "llama_rope_dynamic": "llama.rope.scaling.type is 'dynamic', expected none, linear or yarn",
    "qwen2_swa": "windows is (0, 16, 16), a GGUF file of architecture qwen2 cannot say it",
    "gpt2_seqcls": "n_labels is 2, a GGUF file of architecture gpt2 cannot say it",
    "qwen2_dca": "a GGUF file of architecture qwen2 cannot say it",
    "bert_mlm": "has mlm_dense, which a GGUF file of architecture bert cannot hold",
}


def logits(path, tokens):
    config, weights = gguf.load(path)
    return Transformer(config, weights, engine="numpy").forward(tokens, State(config), True)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_folder_as_a_gguf_file(reference, tmp_path, name):
    folder, path = reference / "architectures" / name, tmp_path / "x.gguf"
    export(folder, path, "gguf", type="F32")
    assert gguf.read(path).metadata.architecture == ARCHITECTURES[name]
    expected = np.load(folder / "expected.npz")
    got = logits(path, expected["tokens"])
    np.testing.assert_allclose(got, expected["logits"], rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    "name",
    "gemma3 gpt2 llama llama3_rope mixtral phi2 phi3_longrope qwen2 qwen2_yarn qwen3".split(),
)
def test_a_network_of_a_gguf_file_as_another_one(reference, tmp_path, monkeypatch, name):
    """As if it came from another format: without the metadata of the file."""
    source = read_source(reference / "gguf" / f"{name}.F32.gguf")
    monkeypatch.setattr("llama2np.formats.gguf.from_source.is_gguf", lambda path: False)
    write_gguf(source, tmp_path / "x.gguf", "F32")
    made = read_source(tmp_path / "x.gguf")
    assert made.tied == source.tied and made.tensors.keys() == source.tensors.keys()
    for tensor, old in zip(
        made.tensors.values(), map(source.tensors.get, made.tensors), strict=True
    ):
        assert all(np.array_equal(a, b) for a, b in zip(tensor.blocks(), old.blocks(), strict=True))
    assert made.config == source.config


@pytest.mark.parametrize("name", REFUSED)
def test_what_gguf_cannot_say_is_refused(reference, tmp_path, name):
    with pytest.raises(CheckpointError) as error:
        export(reference / "architectures" / name, tmp_path / "x.gguf", "gguf")
    assert REFUSED[name] in str(error.value) and str(error.value).isprintable()
    assert not list(tmp_path.iterdir())


def test_an_encoder(reference, tmp_path):
    """The folder has a head, which GGUF has no place for: without it."""
    kind, source = inspection.open_any(reference / "architectures" / "bert_mlm")
    body = {n: t for n, t in source.tensors.items() if not n.startswith(("mlm", "classifier"))}
    object.__setattr__(source, "tensors", body)
    write_gguf(source, tmp_path / "x.gguf", "F32")
    config, weights = gguf.load(tmp_path / "x.gguf")
    assert config == source.config and weights.keys() == body.keys()
    for name, tensor in body.items():
        values = weights[name] if isinstance(weights[name], np.ndarray) else weights[name].w
        assert np.array_equal(np.concatenate(list(tensor.blocks())), values)


def test_a_gguf_file_keeps_its_metadata(reference, tmp_path):
    path = tmp_path / "x.gguf"
    export(reference / "gguf" / "gpt2.F16.gguf", path, "gguf", type="Q5_0", seq_len=64)
    old, new = gguf.read(reference / "gguf" / "gpt2.F16.gguf"), gguf.read(path)
    changed = {key for key in old.packed if old.packed[key] != new.packed[key]}
    assert changed == {"general.file_type", "gpt2.context_length"}
    assert new.metadata["gpt2.context_length"] == 64 and new.packed.keys() == old.packed.keys()


def test_a_llama_as_a_bin(reference, tmp_path, capsys):
    source, path = reference / "gguf" / "llama.Q4_0.gguf", tmp_path / "x.bin"
    arguments = ["export", str(path), "--version", "1", "--gguf", str(source)]
    assert main(arguments) == 0 and "wrote" in capsys.readouterr().out
    config, weights = checkpoint.load(path)
    expected = np.load(reference / "gguf" / "llama.expected.npz")
    model = Transformer(config, weights, engine="numpy")
    got = model.forward(expected["tokens"], State(config), True)
    np.testing.assert_allclose(got, expected["logits_Q4_0"], rtol=0, atol=2e-4)


def test_a_bin_as_a_gguf_file(tmp_path, capsys):
    path = tmp_path / "x.gguf"
    arguments = ["export", str(path), "--version", "gguf", "--type", "F16", "--bin", "stories-box"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert said == f"wrote {path}: GGUF, F16, {path.stat().st_size:,} bytes\n"
    assert {t.type.name for t in gguf.read(path).tensors.values()} == {"F16", "F32"}
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"{path}: GGUF" in out and "float16" in out and "all values are finite" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--version", "1", "--type", "Q4_0"], "--type Q4_0 needs --version gguf"),
        (["--version", "ggml"], "expected -1 or 0 or 1 or 2 or gguf, found 'ggml'"),
        (["--version", "gguf", "--type", "Q2_K"], "expected F32 or F16 or BF16 or Q4_0 or"),
        (["--version", "gguf", "--dtype", "fp16"], "--dtype fp16 needs --version -1"),
    ],
)
def test_wrong_flags(tmp_path, capsys, arguments, message):
    path = str(tmp_path / "x.gguf")
    assert main(["export", path, *arguments, "--bin", "stories-box"]) in (1, 2)
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_wrong_arguments(tmp_path):
    for options, message in (
        (dict(version="ggml"), "version must be"),
        (
            dict(version="gguf", type="Q2_K"),
            "type must be F32 or F16 or BF16 or Q4_0 .* not 'Q2_K'",
        ),
        (dict(version=1, type="Q4_0"), "type Q4_0 needs version 'gguf'"),
    ):
        with pytest.raises(ValueError, match=message):
            export("stories-box", tmp_path / "x", **options)
