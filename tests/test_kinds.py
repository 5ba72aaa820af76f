"""Files in the wrong place are named by their first bytes, with the command that helps."""

import base64
import gzip
import io
import json
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from conftest import ROOT, TINY
from test_cli_errors import GOOD, TOKENIZER

from llama2np import Llama, State, Tokenizer, TokenizerError, advice, box
from llama2np import export as export_function
from llama2np.cli import main
from llama2np.cli.run import main as run
from llama2np.formats import kinds
from llama2np.formats.checkpoint import CheckpointError, Header

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 12345\n" % 0


def archive(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "/"), data)
    return buffer.getvalue()


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def tarred():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("model.bin"))
    return buffer.getvalue()


def npy():
    np.save(buffer := io.BytesIO(), np.zeros(3))
    return buffer.getvalue()


def safetensors():
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return len(header).to_bytes(8, "little") + header + bytes(4)


def versions(version):
    return struct.pack("<Ii7iB", 0x616B3432, version, 48, 80, 3, 6, 2, 300, 96, 1).ljust(300, b"\0")


TIKTOKEN = b"".join(base64.b64encode(bytes([i])) + b" %d\n" % i for i in range(256))
PIECES = b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02" + b"\n\x0c\n\x03<s>\x15\0\0\0\0\x18\x03"
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."

# What it is: its bytes, and what is said of it where a model is expected.
MODELS = {
    "trainer": (archive(a__data_pkl=b"").replace(b"data_pkl", b"data.pkl") + b"model_args", None),
    "torch": (archive(a__data_pkl=b"").replace(b"data_pkl", b"data.pkl"), "a torch file"),
    "torch-old": (LEGACY, "before torch 1.6"),
    "safetensors": (safetensors(), "a safetensors file"),
    "ggml": (b"lmgg" + bytes(99), "a GGML file"),
    "ggmf": (b"fmgg\1\0\0\0" + bytes(99), "a GGML file"),
    "ggjt": (b"tjgg\3\0\0\0" + bytes(99), "a GGML file"),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x032.1" + bytes(99), "an ONNX model"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
    "index": (b'{"metadata": {"total_size": 4}, "weight_map": {"a": "b"}}', "index of a sharded"),
    "config.json": (b'{\n  "architectures": ["LlamaForCausalLM"]}', "the config.json"),
    "params.json": (b'{"dim": 64, "n_layers": 2, "n_heads": 4}', "the params.json"),
    "adapter": (b'{"peft_type": "LORA"}', "an adapter"),
}
BINS = {"version 0": GOOD, "version 1": versions(1), "version 2": versions(2)}
TOKENIZERS = {
    "tiktoken": (TIKTOKEN, "tiktoken"),
    "tiktoken, CRLF": (TIKTOKEN.replace(b"\n", b"\r\n"), "Llama 3"),
    "tokenizer.json": (b'{"version": "1.0", "model": {"type": "BPE"}}', "a tokenizer.json"),
    "large tokenizer.json": (
        json.dumps({"version": "1.0", "truncation": None, "added_tokens": ["x" * 2**17]}).encode(),
        "a tokenizer.json",
    ),
    "tokenizer_config.json": (b'{"bos_token": "<s>", "model_max_length": 9}', "tokenizer_config"),
    "vocab.json": (b'{"!": 0, "\\"": 1}', "vocab.json"),
    "merges.txt": (b"#version: 0.2\n\xc4\xa0 t\n\xc4\xa0 a\n", "merges.txt"),
    "vocab.txt": (b"[PAD]\n[unused0]\n", "vocab.txt"),
}
OTHERS = {
    "pointer": (POINTER, "a git-lfs pointer", "lfs pull"),
    "empty": (b"", "an empty file", "again"),
    "HTML": (b"\n<!DOCTYPE html>\n<html><head>", "a web page", "/resolve/"),
    "html": (b"<html lang=en>", "a web page", "/resolve/"),
    "answer": (b"Entry not found", "a server's error message", "again"),
    "404": (b"404: Not Found", "a server's error message", "again"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied', "a server's error", "again"),
    "JSON answer": (b'{"error":"Invalid username or password."}', "a server's error", "again"),
    "PDF": (b"%PDF-1.7\n", "a PDF", ""),
    "gzip": (gzip.compress(GOOD), "a gzip archive", "tar -xf"),
    "zip": (archive(readme=b"x"), "a zip archive", "unzip"),
    "tar": (tarred(), "a tar archive", "tar -xf"),
    "xz": (b"\xfd7zXZ\0", "a compressed archive", "unpack"),
    "npz": (npz(a=np.zeros(3)), "a .npz", ""),
    "npy": (npy(), "a NumPy array", ""),
    "pickle": (pickle.dumps([1, 2]), "a Python pickle", ""),
    "JSON": (b'\xef\xbb\xbf{"a": "b"}', "a JSON file", ""),
    "text": ("Il était une fois\n".encode(), "a text", ""),
}


def refused(read, *arguments, error=ValueError):
    with pytest.raises(error) as caught:
        read(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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


def test_a_tokenizer_that_runs_is_named_beside_one_that_does_not(put, tmp_path):
    shutil.copy(box.TOKENIZER, tmp_path)
    said = refused(Tokenizer.load, put(TOKENIZERS["tiktoken"][0]))
    assert said.endswith(f"; {tmp_path / 'tokenizer.bin'} is beside it")


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


# --- names ---


def test_a_missing_model_that_can_be_fetched(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("stories15M.bin", "stories42M.bin", "stories110M.bin"):
        for command in ("run", "bench", "inspect"):
            assert main([command, name]) == 1
            said = capsys.readouterr().err
            assert f"{name}: No such file or directory; `make {name}` in {ROOT} fetches it" in said
    assert main(["run", "stories-box", "-z", "tokenizer.bin"]) == 1
    assert f"`make tokenizer.bin` in {ROOT}" in capsys.readouterr().err
    monkeypatch.chdir(ROOT)
    said = refused(Llama.load, "nowhere/stories15M.bin", error=FileNotFoundError)
    assert "`make stories15M.bin` fetches it" in said


def test_what_pip_installed_never_advises_make(tmp_path):
    """Nor export.py, which is not installed."""
    shutil.copytree(ROOT / "llama2np", tmp_path / "llama2np")
    (tmp_path / "trained").write_bytes(MODELS["trainer"][0])
    (tmp_path / "model.bin").write_bytes(GOOD)
    models = ["stories15M.bin", "stories15.bin", "model.bin", "trained", "-z tokenizer.bin"]
    code = f"""
from llama2np.cli import main
for words in {models}:
    assert main(["run", *words.split()]) == 1
"""
    python = [sys.executable, "-B", "-c", code]
    done = subprocess.run(python, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "make" not in done.stderr and ".py" not in done.stderr
    said = done.stderr.splitlines()
    assert "`llama2np pull stories15M` downloads it" in said[0]
    assert "did you mean stories15M.bin?" in said[1]
    assert all("`llama2np pull tokenizer.bin --folder .`" in line for line in (said[2], said[4]))
    assert "`llama2np export out.bin --checkpoint trained`" in said[3]


@pytest.mark.parametrize(
    "name, meant",
    [
        ("stories-bx", "stories-box?"),
        ("Stories-Box", "stories-box?"),
        ("stories_box_q8", "stories-box-q8?"),
        ("stories-box.bin", "stories-box?"),
        ("stories15m.bin", "stories15M.bin?"),
        ("models/stories42", "stories42M?"),
    ],
)
def test_the_nearest_model(name, meant):
    assert f"did you mean {meant}" in refused(Llama.load, name, error=FileNotFoundError)


def test_a_name_of_a_hub(capsys):
    for words in ("run meta-llama/Llama-2-7b", "export x --hf TinyLlama/TinyLlama-1.1B-Chat-v1.0"):
        assert main(words.split()) == 1
        assert "on huggingface.co: `llama2np pull " in capsys.readouterr().err


def test_a_suggestion_is_made_once(capsys):
    for words in (
        "inspect stories-bx",
        "inspect stories15M.bin",
        "export x --checkpoint tokenizer.bin",
    ):
        assert main(words.split()) == 1
        assert capsys.readouterr().err.count(";") == 1


def test_a_bundled_model_after_another_flag(capsys):
    for flag in ("--checkpoint", "--hf", "--meta-llama"):
        assert main(["export", "out.bin", flag, "stories-box"]) == 1
        assert "out.bin --bin stories-box`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, meant",
    [
        ("rnu", "run?"),
        ("exprot x", "export?"),
        ("perplexty", "perplexity?"),
        ("stories-box", "llama2np run stories-box?"),
        ("--hlep", "--help?"),
        ("run --temprature 0.5", "--temperature?"),
        ("run --temp 0.5", "--temperature?"),
        ("run --top_k 40", "--top-k?"),
        ("run --top_k=40", "--top-k?"),
        ("run -temperature 0.5", "--temperature?"),
        ("run -prompt=A", "--prompt?"),
        ("run --Prompt A", "--prompt?"),
        ("run -m chta", "chat?"),
        ("run --mode=generat", "generate?"),
        ("export x --checkpoit y", "--checkpoint?"),
        ("export x --bin y --version -1 --dtype fp61", "fp16?"),
        ("inspect x --agianst y", "--against?"),
        ("bench x --jsn", "--json?"),
        ("lens --promt x", "--prompt?"),
        ("attend --laier 1", "--layer?"),
        ("perplexity --flie x", "--file?"),
        ("warmup --hepl", "--help?"),
    ],
)
def test_the_nearest_command_and_flag(capsys, argv, meant):
    assert main(argv.split()) == 1
    said = capsys.readouterr().err
    assert f"did you mean {meant}" in said and said.count("\n") == 1


@pytest.mark.parametrize("argv", ["zzz", "run --zzz", "run -q", "run -m zzz"])
def test_no_suggestion_where_nothing_is_near(capsys, argv):
    assert main(argv.split()) == 1
    assert "did you mean" not in capsys.readouterr().err


def test_values_are_no_flags(capsys, put):
    assert main(["run", str(put(POINTER)), "-i", "--temprature", "-t0.5", "-s=3"]) == 1
    said = capsys.readouterr().err
    assert "did you mean" not in said


def test_an_unknown_option_of_the_library(model):
    said = refused(lambda: model.generate("A", temprature=1), error=TypeError)
    assert said.endswith("did you mean temperature?")


def test_a_long_name_is_no_work():
    assert advice.nearest("x" * 10**6, ["run"]) is None


# --- what objects say of themselves ---


def test_reprs_say_what_it_is(model):
    state = model.new_state()
    model.forward([1, 2, 3], state)
    chat, weights = model.chat(), model.transformer.weights
    assert repr(model) == "Llama(3 layers of dim 48, context 96, vocabulary 300)"
    assert repr(model.tokenizer) == "Tokenizer(300 pieces)"
    assert repr(state) == "State(3 of 96 positions read)"
    assert repr(chat) == "Chat(0 of 96 positions read)"
    assert repr(weights) == "Weights(3 layers, 30 tensors, 270,912 bytes)"
    assert repr(weights["layers.0.wq"]) == "Dense(48, 48)"
    expected = "Transformer(3 layers of dim 48, 6 heads, context 96, vocabulary 300)"
    assert repr(model.transformer) == expected
    story = model.generate("A" * 50, max_new_tokens=40, temperature=0)
    assert story.read() is not None and len(repr(story)) < 120


def test_a_path_in_place_of_what_is_in_the_file(tmp_path):
    for path in ("stories-box", tmp_path / "x.bin"):
        assert "Llama.load(" in refused(Llama, path, error=TypeError)
        assert "Llama.load(" in refused(Llama, path, path, error=TypeError)
        assert "Tokenizer.load" in refused(Tokenizer, path, error=TypeError)
        assert "State.load" in refused(State, path, error=TypeError)
    assert "Llama.load('stories-box')" in refused(Llama, "stories-box", error=TypeError)
    tokenizer = Tokenizer([b"a"], [0.0])
    assert "Llama.load" in refused(Llama, tokenizer, error=TypeError)
