"""Files in the wrong place are named by their first bytes, with the command that helps."""

import errno
import json
import os
import shutil

import pytest
from conftest import TINY
from endless import GOOD, TOKENIZER
from other_files import BINS, MODELS, OTHERS, PIECES, POINTER, TOKENIZERS, refused, safetensors

from llama2np import Llama, State, Tokenizer, TokenizerError, advice, box
from llama2np import export as export_function
from llama2np.cli import main
from llama2np.cli.run import main as run
from llama2np.formats import kinds
from llama2np.formats.checkpoint import CheckpointError, Header


@pytest.fixture
def put(tmp_path):
    """put(data) -> a file of these bytes, whose name says nothing."""

    def put(data, name="thing"):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return put


def cases(table):
    return pytest.mark.parametrize("case", table.values(), ids=table)


# --- each kind, in each kind of place ---


@cases(MODELS)
@pytest.mark.parametrize("name", ["thing", "model.bin"])
def test_a_model_of_another_kind(put, case, name):
    data, words = case
    said = refused(Llama.load, path := put(data, name), error=CheckpointError)
    assert said.startswith(f"{path}: not a llama2.c checkpoint, but ")
    assert (words or "a checkpoint of llama2.c's training script") in said
    if words is None:
        assert f"export.py out.bin --checkpoint {path}`" in said
    said = refused(Tokenizer.load, path, error=TokenizerError)
    assert "tokenizer.bin or sentencepiece model, but " in said and "its tokenizer" in said


@cases(BINS)
def test_a_bin_elsewhere(put, case):
    path = put(case)
    assert "a llama2.c checkpoint" in refused(Tokenizer.load, path, error=TokenizerError)
    assert "a llama2.c checkpoint" in refused(State.load, path, TINY)


@cases(BINS)
@pytest.mark.parametrize("flag", ["--checkpoint", "--hf", "--meta-llama"])
def test_a_bin_after_another_flag(put, capsys, case, flag):
    path = put(case)
    assert main(["export", "out.bin", flag, str(path)]) == 1
    assert f"export.py out.bin --bin {path}`" in capsys.readouterr().err


# These can be read, if nothing is wrong with them: then the error says what.
READABLE = ("a tokenizer.json", "vocab.json", "merges.txt", "vocab.txt")


@cases(TOKENIZERS)
def test_a_tokenizer_of_another_kind(put, capsys, case):
    data, words = case
    path = put(data, "tokenizer.model")
    for read in (Llama.load, Tokenizer.load):
        said = refused(read, path)
        readable = words in READABLE
        assert words in said or readable
        assert readable or "cannot be read yet; use a tokenizer.json" in said
    assert main(["export", "t.bin", "--tokenizer", str(path)]) == 1
    said = capsys.readouterr().err
    assert words in said and "not a sentencepiece model" in said and said.count("\n") == 1


@pytest.mark.parametrize("data", [TOKENIZER, PIECES], ids=["tokenizer.bin", "sentencepiece"])
def test_a_tokenizer_in_place_of_a_model(put, data):
    path = put(data, "model.bin")
    said = refused(Llama.load, path, error=CheckpointError)
    assert f"-z {path}" in said
    assert ("--tokenizer" in said) == (data is PIECES)


def test_a_tokenizer_bin_needs_no_export(put, capsys):
    path = put(TOKENIZER, "tokenizer.model")
    assert main(["export", "t.bin", "--tokenizer", str(path)]) == 1
    assert "but a tokenizer.bin: use it with a model, after -z" in capsys.readouterr().err


@cases(OTHERS)
def test_what_is_neither(put, case):
    data, words, way = case
    path = put(data)
    for said in (
        refused(Llama.load, path, error=CheckpointError),
        refused(Tokenizer.load, path, error=TokenizerError),
        refused(State.load, path, TINY),
        refused(export_function, path, "out.bin", error=CheckpointError),
    ):
        assert said.startswith(f"{path}: ") and words in said and way in said


def test_kinds_that_only_their_names_tell(put):
    for name in ("x.gguf.part1of2", "x.gguf-split-a", "x.safetensors.part03", "x.bin.partab"):
        path = put(b"GGUF\3\0\0\0" if "1of2" in name else b"\xfa" * 99, name)
        assert "`cat` all parts" in refused(Llama.load, path, error=CheckpointError)
    assert "`cat`" not in refused(Llama.load, put(GOOD[:99], "x.bin.partial"))
    assert "of an adapter (LoRA)" in refused(Llama.load, put(safetensors(), "adapter_model.bin"))
    assert "(added_tokens.json)" in refused(Llama.load, put(b'{"<pad>": 320}', "added_tokens.json"))


def test_a_saved_state_in_place_of_a_model(put, tmp_path):
    State(TINY).save(tmp_path / "state.npz")
    path = put((tmp_path / "state.npz").read_bytes())
    assert "a saved state: State.load" in refused(Llama.load, path, error=CheckpointError)
    assert State.load(path, TINY).pos == 0


# --- each place ---

PLACES = {
    "run": "run {path}",
    "run -z": "run stories-box -z {path}",
    "bench": "bench {path}",
    "inspect": "inspect {path}",
    "inspect --against": "inspect stories-box --against {path}",
    "perplexity": "perplexity {path} --file {path}",
    "perplexity --against": "perplexity stories-box --file {path} --against {path}",
    "lens": "lens {path} -i A",
    "lens -z": "lens stories-box -i A -z {path}",
    "attend": "attend {path} -i A",
    "--checkpoint": "export out.bin --checkpoint {path}",
    "--hf": "export out.bin --hf {path}",
    "--meta-llama": "export out.bin --meta-llama {path}",
    "--bin": "export out.bin --bin {path}",
    "--tokenizer": "export out.bin --tokenizer {path}",
}


@cases(PLACES)
def test_wherever_a_file_is_taken(put, capsys, case):
    if "attend" in case:
        pytest.importorskip("matplotlib")
    path = put(POINTER)
    assert main([word.format(path=path) for word in case.split()]) == 1
    said = capsys.readouterr()
    assert not said.out and said.err.count("\n") == 1
    assert f"{path}: not " in said.err and f"`git -C {path.parent} lfs pull`" in said.err


def test_runq_asks_for_int8(put, capsys):
    data, _ = MODELS["trainer"]
    assert run([str(path := put(data))], prog="runq.py", int8_only=True) == 1
    assert f"export.py out.bin --checkpoint {path} --version 2`" in capsys.readouterr().err
    assert run([box.STORIES], prog="runq.py", int8_only=True) == 1
    assert "export.py out.bin --bin stories-box --version 2`" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json"])
def test_a_pointer_in_a_folder(tmp_path, capsys, name):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
    (tmp_path / name).write_bytes(POINTER)
    if name != "config.json":
        config = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=9)
        config |= dict(num_attention_heads=2, model_type="llama")
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["export", "out.bin", "--hf", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path / name}: not a" in said and "a git-lfs pointer" in said


def test_a_file_of_a_folder_leads_to_the_folder(tmp_path, put, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for kind in ("safetensors", "torch", "index", "config.json"):
        path = put(MODELS[kind][0])
        assert f"--hf {tmp_path} --version 1`" in refused(Llama.load, path)
        assert main(["export", "out.bin", "--meta-llama", str(path)]) == 1
        assert f"--hf {tmp_path} --version 1`" in capsys.readouterr().err
    assert main(["export", "out.bin", "--checkpoint", str(put(MODELS["torch"][0]))]) == 1
    (tmp_path / "config.json").rename(tmp_path / "params.json")
    assert f"--meta-llama {tmp_path} --version 1`" in refused(Llama.load, path)
    (tmp_path / "params.json").unlink()
    assert "get its whole folder" in refused(Llama.load, path)


def test_the_function_export_asks_for_the_folder(tmp_path, put):
    path = put(safetensors())
    said = refused(export_function, path, tmp_path / "out.bin", error=CheckpointError)
    assert "without the config of a network: get its whole folder" in said
    (tmp_path / "config.json").write_text("{}")
    said = refused(export_function, path, tmp_path / "out.bin", error=CheckpointError)
    assert said.endswith(f": name {tmp_path}")


def test_a_current_folder_that_is_gone(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "`make stories15M.bin`" in advice.fetching("stories15M.bin")


def test_folders(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    said = refused(Llama.load, tmp_path, error=CheckpointError)
    assert "config.json: model_type=None, expected one of llama" in said
    said = refused(Tokenizer.load, tmp_path, error=TokenizerError)
    assert "a directory without a tokenizer: expected one of tokenizer.json, " in said
    (tmp_path / "config.json").rename(tmp_path / "params.json")
    assert "params.json: has no dim" in refused(Llama.load, tmp_path, error=CheckpointError)
    (tmp_path / "params.json").rename(tmp_path / "model.gguf")
    assert "a folder of GGUF files" in refused(Llama.load, tmp_path, error=CheckpointError)
    assert main(["inspect", str(tmp_path)]) == 1
    assert "a folder of GGUF files" in capsys.readouterr().err


CONFIG = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=9)
CONFIG |= dict(num_attention_heads=2, model_type="llama")
WEIGHTS = {
    "flax_model.msgpack": "cannot be read yet",
    "onnx/model.onnx": "cannot be read yet",
    "zero_to_fp32.py": "run it first",
    "model.safetensors.incomplete": "download it again",
    "llama-7b.safetensors": "rename it",
    "consolidated.safetensors": "Mistral's own format; this cannot be read yet",
    "adapter_model.safetensors": "merge it",
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_another_form_in_a_folder(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for other in ("tokenizer.bin", "optimizer.pt"):
        (tmp_path / other).write_bytes(b"x")
    assert refused(Llama.load, tmp_path, error=CheckpointError).endswith("with index.json")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    said = refused(Llama.load, tmp_path, error=CheckpointError)
    assert f", but {name}: " in said and WEIGHTS[name] in said


def test_a_model_in_a_folder_of_the_folder_is_named(tmp_path):
    (tmp_path / "checkpoint-500").mkdir()
    (tmp_path / "checkpoint-500" / "config.json").write_text(json.dumps(CONFIG))
    said = refused(Llama.load, tmp_path, error=CheckpointError)
    assert said.endswith(f"name one of them, such as {tmp_path / 'checkpoint-500'}")


def test_a_folder_that_may_not_be_read_hides_no_advice(tmp_path, monkeypatch):
    """As lost+found is. Before Python 3.14, Path.is_file raises the error."""

    is_file = type(tmp_path).is_file

    def refuse(path):
        if path.parent.name == "lost+found":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return is_file(path)

    (tmp_path / "lost+found").mkdir()
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(type(tmp_path), "is_file", refuse)
    assert "name one of the files in it" in kinds.explained(tmp_path, "any")


def test_a_folder_with_both_descriptions_is_read_by_its_weights(tmp_path):
    """Mistral's folders have params.json, and the weights in Hugging Face's form."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "params.json").write_text("{}")
    assert "has no model.safetensors" in refused(Llama.load, tmp_path)
    (tmp_path / "consolidated.00.pth").write_bytes(b"")
    assert "not a folder in Meta's format" in refused(Llama.load, tmp_path)


def test_a_tokenizer_that_runs_is_named_beside_one_that_does_not(put, tmp_path):
    shutil.copy(box.TOKENIZER, tmp_path)
    said = refused(Tokenizer.load, put(TOKENIZERS["tiktoken"][0]))
    assert said.endswith(f"; {tmp_path / 'tokenizer.bin'} is beside it")


def test_an_unset_variable_is_not_the_current_folder(capsys):
    assert main(["run", ""]) == 1
    assert capsys.readouterr().err.startswith("llama2np run: the name of the model is empty")


def test_a_disk_error_names_the_file(put):
    path = put(GOOD)
    with pytest.raises(OSError) as caught, kinds.named(path, "any", CheckpointError):
        raise OSError(errno.EIO, "Input/output error")
    assert caught.value.filename == str(path) and caught.value.errno == errno.EIO


def test_paths_can_be_pasted(put):
    path = put(MODELS["trainer"][0], "my model")
    assert f"--checkpoint '{path}'`" in refused(Llama.load, path)


def test_what_can_be_read_is_never_refused_by_its_kind(tmp_path, monkeypatch, write):
    """The table is not even looked at."""
    path = write("tiny.bin", Header(1, TINY, True))
    monkeypatch.setattr(kinds, "KINDS", None)
    (tmp_path / "t.bin").write_bytes(TOKENIZER)
    assert Llama.load(path, tmp_path / "t.bin").config == TINY


@pytest.mark.parametrize("size", [20, 28, 1000])
def test_a_damaged_file_of_the_right_kind_is_told_by_its_reader(put, size):
    assert "truncated download?" in refused(Llama.load, put(GOOD[:size]))
    assert "but" not in refused(Tokenizer.load, put(TOKENIZER[:size]))


def test_inspect_does_not_go_by_the_name(put, capsys):
    path = put(safetensors(), "x.bin")
    assert main(["inspect", str(path)]) == 0
    assert "tensors in a safetensors file" in capsys.readouterr().out
