"""GGUF files as folders of transformers, with equal logits."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import writable_copy

from llama2np import export
from llama2np.cli.export import main
from llama2np.cli.run import main as run
from llama2np.formats import gguf, loading
from llama2np.formats.checkpoint import CheckpointError, CheckpointWarning
from llama2np.formats.gguf.from_source import write_gguf
from llama2np.formats.gguf.source import read_source
from llama2np.formats.huggingface.writing import as_folder
from llama2np.formats.inspection import open_any
from llama2np.formats.source import Sentences
from llama2np.model.encoder import EncoderNetwork
from llama2np.model.transformer import State, Transformer

# The reference networks have no tokenizer beside them.
pytestmark = pytest.mark.filterwarnings("ignore:.*written without a tokenizer:Warning")

FILES = {  # and model_type of the folder
    **{"gemma3.F32": "gemma3_text", "gpt2.Q4_0": "gpt2", "llama.BF16": "llama"},
    **{"llama3_rope.F32": "llama", "llama_linear.F32": "llama", "llama_k.Q4_K_M": "llama"},
    **{"mixtral.Q5_0": "mixtral", "phi2.F16": "phi", "phi3.Q8_0": "llama"},
    **{"phi3_longrope.F32": "phi3", "qwen2.Q5_1": "qwen2", "qwen2_yarn.F32": "qwen2"},
    **{"qwen3.Q8_0": "qwen3"},
}
ARCHITECTURES = {  # folders that become GGUF files, and folders again
    **{"gemma": "gemma", "gemma2": "gemma2", "gptneox_parallel": "gpt_neox"},
    **{"gptneox_sequential": "gpt_neox", "mistral_swa": "mistral"},
    "llama_bias": "llama",
}


def logits(loaded, tokens):
    config, weights = loaded
    return Transformer(config, weights, engine="numpy").forward(tokens, State(config), True)


def rewritten(path, folder):
    """The network of a GGUF file, written as a folder and read again."""
    export(path, folder, -1)
    loaded = loading.load(folder)
    return loaded.config, loaded.weights


@pytest.mark.parametrize("name", FILES)
def test_a_file(reference, tmp_path, name):
    path, folder = reference / "gguf" / f"{name}.gguf", tmp_path / "x"
    found = rewritten(path, folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == FILES[name]
    tokens = np.load(reference / "gguf" / f"{name.split('.')[0]}.expected.npz")["tokens"]
    # Rows in another order are added in another order, in Llama's queries and keys.
    expected = logits(gguf.load(path), tokens)
    np.testing.assert_allclose(logits(found, tokens), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_folder_of_the_first_folders_network(reference, tmp_path, name):
    first, folder = reference / "architectures" / name, tmp_path / "x"
    export(first, tmp_path / "x.gguf", "gguf", type="F32")
    found = rewritten(tmp_path / "x.gguf", folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == ARCHITECTURES[name]
    expected = np.load(first / "expected.npz")
    got = logits(found, expected["tokens"])
    np.testing.assert_allclose(got, expected["logits"], rtol=0, atol=2e-4)


def test_an_encoder(reference, tmp_path):
    kind, source = open_any(reference / "architectures" / "bert_mlm")
    body = {n: t for n, t in source.tensors.items() if not n.startswith(("mlm", "classifier"))}
    object.__setattr__(source, "tensors", body)
    write_gguf(source, tmp_path / "x.gguf", "F32")
    config, weights = rewritten(tmp_path / "x.gguf", tmp_path / "x")
    ids, mask = np.array([[2, 9, 4, 7]]), np.ones((1, 4), np.int64)
    outputs = [
        EncoderNetwork(c, w, engine="numpy").forward(ids, mask).last_hidden_state
        for c, w in (gguf.load(tmp_path / "x.gguf"), (config, weights))
    ]
    np.testing.assert_array_equal(*outputs)


def test_the_pooling_of_an_encoder(reference, tmp_path):
    """Sentence encoders have a pooler that they do not use."""
    hubnames = reference / "architectures" / "bert_pretraining_hubnames"
    folder = writable_copy(hubnames, tmp_path / "sentences")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    export(folder, tmp_path / "copy", version=-1)
    assert loading.load(tmp_path / "copy").sentences == Sentences("cls", 12)
    _, source = open_any(folder)
    body = {n: t for n, t in source.tensors.items() if not n.startswith(("mlm", "class", "nsp"))}
    object.__setattr__(source, "tensors", body)
    with pytest.warns(CheckpointWarning, match="written without its pooler"):
        write_gguf(source, tmp_path / "x.gguf", "F32")
    assert loading.load(tmp_path / "x.gguf").sentences.pooling == "cls"
    assert gguf.read(tmp_path / "x.gguf").metadata["tokenizer.ggml.token_type_count"] == 2
    for version, name in ((-1, "again"), ("gguf", "again.gguf")):
        export(tmp_path / "x.gguf", tmp_path / name, version=version)
        assert loading.load(tmp_path / name).sentences.pooling == "cls"
    modules = json.loads((tmp_path / "again" / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_Pooling"]


def test_a_refused_encoder_is_not_called_written(reference, tmp_path, capsys):
    folder = str(reference / "architectures" / "bert_pretraining_hubnames")
    assert main([str(tmp_path / "x.gguf"), "--hf", folder, "--version", "gguf"], "export") == 1
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and "has mlm_dense, which a GGUF file" in err


def test_a_folder_without_a_tokenizer_says_which_one_to_take(tmp_path, capsys):
    folder = str(tmp_path / "folder")
    for flag, source, expected in (
        ("--bin", "stories-box", "stories-box"),
        ("--gguf", str(tmp_path / "x.gguf"), str(tmp_path / "x.gguf")),
    ):
        assert main([folder, flag, source, "--version", "-1"], "export") == 0
        wrote = f"wrote {folder}: Hugging Face, float32, without a tokenizer: run it with -z "
        assert capsys.readouterr().out == f"{wrote}{expected}\n"
        assert run([folder, "-z", expected, "-n", "9", "-s", "1"], "run") == 0
        assert capsys.readouterr().out.startswith("Once")
        export("stories-box", tmp_path / "x.gguf", version="gguf", type="F32")
    assert main([str(tmp_path / "copy"), "--hf", folder, "--version", "-1"], "export") == 0
    assert capsys.readouterr().out.endswith("run it with -z FILE\n")


@pytest.mark.parametrize(
    ("changed", "expected"),
    (
        ({"logit_softcap": 5.0}, r"logit_softcap=5.0 .* a folder of qwen2, which would have 0"),
        ({"windows": (0, 8)}, None),
        ({"windows": (8, 0)}, r"windows=\(8, 0\) cannot be written as a folder of qwen2"),
        ({"rope_halves": 0, "rotary_dim": 8}, r"rotary_dim=8 of adjacent pairs"),
    ),
)
def test_what_a_folder_cannot_say_is_refused_by_name(reference, changed, expected):
    source = read_source(reference / "gguf" / "qwen2.F32.gguf")
    source = replace(source, config=replace(source.config, **changed))
    if expected is None:
        as_folder(source, "float32")
        return
    with pytest.raises(CheckpointError, match=expected) as error:
        as_folder(source, "float32")
    assert "\n" not in str(error.value)
