"""Sources to .bin and back out: llama2.c's exporter and transformers are the authority."""

import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file

from llama2np import checkpoint
from llama2np.checkpoint import CheckpointError, Header, read_header
from llama2np.cli.export import main as export
from llama2np.config import Config
from llama2np.convert import huggingface, llama2c, meta
from llama2np.convert.q80 import group_size_for, quantize
from llama2np.convert.rope_tables import rope_tables
from llama2np.convert.write import write_bin, write_huggingface
from llama2np.transformer import State, Transformer
from tools.torch_files import Tensor, pickled, write_archive

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
    assert {"embedding", "wq.0", "w_down.4"} <= errors.keys() and "final_norm" not in errors


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


@pytest.mark.parametrize("name", ("hf_llama_gqa_bf16_sharded", "hf_llama_mha_fp32_tied"))
def test_transformers_gives_the_same_logits(reference, tmp_path, name):
    """rope_theta, norm_eps and grouped queries survive, or nothing would agree."""
    model = exported(huggingface.read(reference / name), tmp_path / "x.bin", 1)
    expected = np.load(reference / name / "expected.npz")
    if name == "hf_llama_gqa_bf16_sharded":
        # That file was made with rotary frequencies rounded to bfloat16, as the weights are;
        # transformers too is 0.0133 from it without that.
        exact = model.forward(expected["tokens"], State(model.config), all_logits=True)
        assert np.abs(exact - expected["logits"]).max() < 0.02
        import ml_dtypes

        model._frequencies = model._frequencies.astype(ml_dtypes.bfloat16).astype(np.float32)
    logits = model.forward(expected["tokens"], State(model.config), all_logits=True)
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=2e-4)


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
    assert json.loads((tmp_path / "hf/config.json").read_text())["torch_dtype"] == dtype
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


# The header's extension


def test_extension_is_where_the_c_programs_do_not_look():
    plain, other = Config(64, 96, 2, 4, 2, 100, 50), Config(64, 96, 2, 4, 2, 100, 50, 5e5, 1e-6)
    for version, group in ((1, 0), (2, 32)):
        a = Header(version, plain, True, group).to_bytes()
        b = Header(version, other, True, group).to_bytes()
        assert not any(a[64:]) and a[:64] == b[:64] and len(a) == len(b) == 256
        assert b[64:80] == b"l2np\x08\0\0\0" + np.array([5e5, 1e-6], "<f4").tobytes()
        assert not any(b[80:])


@given(
    st.floats(1, 1e9, width=32).map(lambda x: float(str(np.float32(x)))),
    st.floats(2.0**-40, 2.0**-6, width=32).map(lambda x: float(str(np.float32(x)))),
)
def test_extension_round_trip(tmp_path_factory, theta, eps):
    config = Config(8, 8, 1, 2, 2, 9, 5, theta, eps)
    header = Header(1, config, True)
    path = tmp_path_factory.getbasetemp() / "extension.bin"
    path.write_bytes(header.to_bytes().ljust(header.file_size, b"\0"))
    assert read_header(path) == header


@pytest.mark.parametrize(
    "block, match",
    (
        (b"l2np\x08\0\0\0" + np.array([np.nan, 0], "<f4").tobytes(), "rope_theta"),
        (b"l2np\x08\0\0\0" + np.array([-1, 0], "<f4").tobytes(), "rope_theta"),
        (b"l2np\x0c\0\0\0" + bytes(8) + b"\1\0\0\0", "newer"),
        (b"l2np\xff\xff\xff\xff", "newer"),
        (b"l2np\4\0\0\0", "newer"),
    ),
)
def test_extensions_that_are_refused(tmp_path, block, match):
    header = Header(1, Config(8, 8, 1, 2, 2, 9, 5), True)
    data = bytearray(header.to_bytes().ljust(header.file_size, b"\0"))
    data[64 : 64 + len(block)] = block
    (tmp_path / "x.bin").write_bytes(data)
    with pytest.raises(CheckpointError, match=match):
        read_header(tmp_path / "x.bin")


def test_fields_of_zero_mean_the_defaults(tmp_path):
    header = Header(1, Config(8, 8, 1, 2, 2, 9, 5), True)
    data = bytearray(header.to_bytes().ljust(header.file_size, b"\0"))
    data[64:76] = b"l2np\x10\0\0\0\0\0\0\0"  # 16 bytes of fields, two more than are known
    (tmp_path / "x.bin").write_bytes(data)
    assert read_header(tmp_path / "x.bin") == header


@pytest.mark.parametrize("theta, eps", ((1e39, 1e-5), (1e4, 1e-60)))
def test_numbers_that_float32_cannot_hold(theta, eps):
    with pytest.raises(ValueError, match="float32"):
        Header(1, Config(8, 8, 1, 2, 2, 9, 5, theta, eps), True).to_bytes()


def test_version_0_has_no_room(reference, tmp_path, capsys):
    source = str(reference / "hf_llama_gqa_bf16_sharded")
    assert export([str(tmp_path / "x.bin"), "--hf", source], "export.py") == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "rope_theta=500000" in told and "--version 1" in told
    assert not os.listdir(tmp_path)


# Quantization


def naive_quantize(w, group):
    """Loops, in the words of the format."""
    q, scales = [], []
    for start in range(0, w.size, group):
        values = w.ravel()[start : start + group]
        scale = np.float32(max(abs(value) for value in values)) / np.float32(127)
        scales.append(scale)
        q += [round(float(value / scale)) if scale else 0 for value in values]
    return q, scales


@given(
    arrays(np.float32, (3, 16), elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False)),
    st.sampled_from((1, 2, 4, 16)),
)
def test_quantize(w, group):
    w[np.abs(w) < 1e-30] = 0
    q, scales, error = quantize(w, group)
    expected_q, expected_scales = naive_quantize(w, group)
    assert q.ravel().tolist() == expected_q and scales.ravel().tolist() == expected_scales
    back = (q.reshape(-1, group) * scales.reshape(-1, 1)).reshape(w.shape)
    assert error.largest == np.abs(back - w).max() and error.count == w.size
    assert error.largest <= scales.max() * 0.501
    assert error.mean == pytest.approx(np.abs(back - w).mean(dtype=np.float64), rel=1e-5, abs=1e-12)


def test_quantize_at_the_edges():
    w = np.zeros((3, 4), np.float32)
    w[1] = [127, 0.5, 1.5, -2.5]  # ties go to the even neighbour
    w[2] = [2.5e-43, -2.5e-43, 1e-45, 0]  # the scale is one of float32's coarsest numbers
    q, scales, _ = quantize(w, 4)
    assert q[0].tolist() == [0] * 4 and scales[0] == 0
    assert q[1].tolist() == [127, 0, 2, -2] and scales[1] == 1
    assert q[2].tolist() == [127, -127, 1, 0]
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="nan or inf"):
            quantize(np.full((1, 4), bad, np.float32), 4)


@given(st.integers(1, 300), st.integers(1, 300))
def test_group_size(half_dim, hidden_dim):
    config = Config(2 * half_dim, hidden_dim, 1, 1, 1, 9, 5)
    group = group_size_for(config)
    assert config.dim % group == config.hidden_dim % group == 0 and 64 % group == 0
    assert group == 64 or config.dim % (2 * group) or config.hidden_dim % (2 * group)


def test_weights_that_are_no_numbers(tmp_path, write):
    path = write("nan.bin", Header(1, Config(8, 8, 1, 2, 2, 9, 5), True))
    data = bytearray(path.read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"nan.bin: w_up.0 holds nan or inf"):
        write_bin(llama2c.read_bin(path), tmp_path / "x.bin", 2)
    assert os.listdir(tmp_path) == ["nan.bin"]


# All or nothing


class Stop:
    """Progress that ends in an exception half way through."""

    def __init__(self, problem):
        self.problem, self.left = problem, 20

    def __call__(self, count):
        self.left -= 1
        if not self.left:
            raise self.problem


@pytest.mark.parametrize("version", (0, 1, 2, -1))
@pytest.mark.parametrize("problem", (KeyboardInterrupt(), OSError(28, "disk full")), ids=str)
def test_nothing_is_left_of_an_export_that_ends_early(reference, tmp_path, version, problem):
    source, path = llama2c.read_pt(reference / f"{STORIES}.pt"), tmp_path / "x"

    def run(progress=int):
        if version == -1:
            write_huggingface(source, path, progress=progress)
        else:
            write_bin(source, path, version, progress)

    with pytest.raises(type(problem)):
        run(Stop(problem))
    assert not os.listdir(tmp_path)
    run()
    files = sorted(file for file in tmp_path.rglob("*") if file.is_file())
    before = [file.read_bytes() for file in files]
    with pytest.raises(type(problem)):
        run(Stop(problem))
    assert sorted(file for file in tmp_path.rglob("*") if file.is_file()) == files
    assert [file.read_bytes() for file in files] == before


def test_free_space_is_looked_at_first(reference, tmp_path, monkeypatch, capsys):
    usage = SimpleNamespace(free=1_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    source = str(reference / f"{STORIES}.pt")
    assert export([str(tmp_path / "x.bin"), "--checkpoint", source], "export.py") == 1
    assert capsys.readouterr().err == (
        f"export.py: {tmp_path}/x.bin: needs 1,056,540 bytes, the disk has 1,000,000 free\n"
    )
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="no file size limit")
def test_a_disk_that_fills_up(reference, tmp_path):
    """A real failure of a real write: the system allows this process no larger file."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (300000, 300000));"
        "from llama2np.cli.export import main; sys.exit(main(sys.argv[1:], 'export.py'))"
    )
    (tmp_path / "x.bin").write_bytes(b"precious")
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, str(tmp_path / "x.bin")]
        + ["--checkpoint", str(reference / f"{STORIES}.pt")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr == f"export.py: {tmp_path}/x.bin: File too large\n"
    assert os.listdir(tmp_path) == ["x.bin"]
    assert (tmp_path / "x.bin").read_bytes() == b"precious"


def test_a_file_can_replace_itself_and_a_link_its_target(reference, tmp_path):
    write_bin(llama2c.read_pt(reference / f"{STORIES}.pt"), tmp_path / "x.bin", 0)
    (tmp_path / "link.bin").symlink_to("x.bin")
    write_bin(llama2c.read_bin(tmp_path / "link.bin"), tmp_path / "link.bin", 1)
    assert (tmp_path / "link.bin").is_symlink() and read_header(tmp_path / "x.bin").version == 1


@pytest.mark.parametrize("target", ("folder", "missing/x.bin", "/dev/null"))
def test_targets_that_cannot_be(reference, tmp_path, capsys, target):
    (tmp_path / "folder").mkdir()
    source = str(reference / f"{STORIES}.pt")
    assert export([str(tmp_path / target), "--checkpoint", source], "export.py") == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and target.split("/")[0] in told
    assert os.listdir(tmp_path) == ["folder"]


# In little memory, with little imported


@pytest.mark.parametrize("version", (1, 2, -1))
def test_memory_stays_below_one_tensor(tmp_path, version):
    """Most of it in matrices of 4 million values, 16 MB as float32."""
    dim, hidden_dim = 1024, 4096
    shapes = {"tok_embeddings": (4096, dim), "norm": (dim,), "output": (4096, dim)}
    for i in range(2):
        shapes |= {f"layers.{i}.attention.{name}": (dim, dim) for name in ("wq", "wk", "wv", "wo")}
        shapes |= {f"layers.{i}.{name}_norm": (dim,) for name in ("attention", "ffn")}
        for name, shape in zip("132", [(hidden_dim, dim)] * 2 + [(dim, hidden_dim)], strict=True):
            shapes[f"layers.{i}.feed_forward.w{name}"] = shape
    tensors = {
        f"{name}.weight": Tensor(str(i), "float16", shape)
        for i, (name, shape) in enumerate(shapes.items())
    }
    holes = {f"data/{tensor.key}": tensor.nbytes for tensor in tensors.values()}
    write_archive(tmp_path / "consolidated.00.pth", {"data.pkl": pickled(tensors)} | holes)
    params = {"dim": dim, "n_layers": 2, "n_heads": 8, "norm_eps": 1e-5}
    (tmp_path / "params.json").write_text(json.dumps(params))
    tracemalloc.start()
    try:
        source = meta.read(tmp_path)
        if version == -1:
            write_huggingface(source, tmp_path / "hf")
        else:
            write_bin(source, tmp_path / "x.bin", version)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert source.size > 35e6 and peak < 8e6


def test_nothing_heavy_is_imported(reference, tmp_path):
    code = (
        "import sys; from llama2np.cli.export import main; assert main(sys.argv[1:], 'x') == 0;"
        "heavy = 'torch transformers safetensors ml_dtypes tqdm sentencepiece'.split();"
        "print(*[name for name in heavy if name in sys.modules])"
    )
    for source in (("--checkpoint", f"{STORIES}.pt"), ("--hf", "hf_llama_mha_fp32_tied")):
        done = subprocess.run(
            [sys.executable, "-B", "-c", code, str(tmp_path / "x.bin"), source[0]]
            + [str(reference / source[1])],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines()[-1] == ""


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
        (["x.bin", "--tokenizer", "none.bin"], r"expected a sentencepiece model"),
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
