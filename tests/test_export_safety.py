"""An export is all or nothing, in little memory, with little imported."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest

from llama2np.cli.export import main as export
from llama2np.formats import llama2c, meta
from llama2np.formats.checkpoint import read_header
from llama2np.formats.write import write_bin, write_huggingface
from tools.torch_files import Tensor, pickled, write_archive

ROOT = Path(__file__).parents[1]
STORIES = "stories260K/stories260K"


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


@pytest.mark.parametrize("target", ("folder", "missing/x.bin", "folder/"))
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
    shapes |= {f"layers.0.attention.{name}": (dim, dim) for name in ("wq", "wk", "wv", "wo")}
    shapes |= {f"layers.0.{name}_norm": (dim,) for name in ("attention", "ffn")}
    for name, shape in zip("132", [(hidden_dim, dim)] * 2 + [(dim, hidden_dim)], strict=True):
        shapes[f"layers.0.feed_forward.w{name}"] = shape
    tensors = {
        f"{name}.weight": Tensor(str(i), "float16", shape)
        for i, (name, shape) in enumerate(shapes.items())
    }
    holes = {f"data/{tensor.key}": tensor.nbytes for tensor in tensors.values()}
    write_archive(tmp_path / "consolidated.00.pth", {"data.pkl": pickled(tensors)} | holes)
    params = {"dim": dim, "n_layers": 1, "n_heads": 8, "norm_eps": 1e-5}
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
    assert source.size > 20e6 and peak < 8e6


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
