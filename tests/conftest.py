"""What the tests share: the reference data, and tiny checkpoints made here.

LLAMA2NP_REFERENCE names the folder of the reference data (default: shared/reference beside the
repository). LLAMA2NP_REQUIRE_ALL=1 makes a test fail, instead of being skipped, where what it needs
is missing. LLAMA2NP_TEST_PULL=1 lets a test download a model of 93 MB.
LLAMA2NP_EXHAUSTIVE=1 (`make test-all`) tries all random cases and all pairs of parameters.
"""

import gc
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

# NumPy's own threads gain nothing on matrices as small as here, and cost the other tests' time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# The models that this user has pulled are not found by the tests.
os.environ["LLAMA2NP_HOME"] = os.path.join(tempfile.gettempdir(), "llama2np-tests-have-no-models")

# Where the home folder cannot be written, matplotlib would say so on stderr.
if not os.access(os.path.expanduser("~"), os.W_OK):
    name = f"llama2np-tests-matplotlib-{getattr(os, 'getuid', int)()}"
    os.environ.setdefault("MPLCONFIGDIR", os.path.join(tempfile.gettempdir(), name))

# Messages advise `llama2np ...`, which is a command for whoever has activated the environment.
os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])

import forks
import numpy as np
import pytest
import warming
from hypothesis import settings

from llama2np import Llama, export
from llama2np.formats.checkpoint import Header, save
from llama2np.kernels.runtime import compiler
from llama2np.model.config import Config
from tools.hostile import valid, write_case

EXHAUSTIVE = bool(os.environ.get("LLAMA2NP_EXHAUSTIVE"))


def examples(count: int) -> int:
    """How many random cases a test tries: a fifth of them, or all."""
    return count if EXHAUSTIVE else -(-count // 5)


def parts(files: dict[str, list], count: int) -> list[list[str]]:
    """The files in `count` parts of as many tests each, in this order: EARLY, TOGETHER, others.

    These are the parts with which pytest-xdist's workers begin.
    """
    early = tuple(f"test_{name}" for name in EARLY.split())
    first = [name for name in files if name.startswith(early)]
    found = [first[k::count] for k in range(count)]
    for k, names in enumerate(TOGETHER):
        found[k % count] += [
            f"test_{name}.py" for name in names.split() if f"test_{name}.py" in files
        ]
    for name in files:
        if not any(name in part for part in found):
            length = [sum(len(files[each]) for each in part) for part in found]
            found[length.index(min(length))].append(name)
    return found


def parameters(values, often):
    """For pytest.mark.parametrize: those of the values that are not in `often` are exhaustive."""
    return [
        pytest.param(value, marks=[pytest.mark.exhaustive] * (value not in often))
        for value in values
    ]


def pairs(some, others):
    """As `parameters`, for all pairs of two values: often, each value is in one or a few pairs."""
    shorter = min(len(some), len(others))
    values = [(a, b) for a in some for b in others]
    places = [(i - k) % shorter for i in range(len(some)) for k in range(len(others))]
    often = [value for value, place in zip(values, places, strict=True) if place == 0]
    return parameters(values, often)


# The same examples in every run, and no clock: on a busy machine a test may take its time.
settings.register_profile("llama2np", deadline=None, derandomize=True, max_examples=examples(100))
settings.load_profile("llama2np")

# Grouped-query, widths that are no power of two, more positions than a first KV cache holds.
TINY = Config(
    dim=48, hidden_dim=80, n_layers=3, n_heads=6, n_kv_heads=2, vocab_size=300, seq_len=96
)
ROOT = Path(__file__).parents[1]


NO_JIT = os.environ.get("NUMBA_DISABLE_JIT", "0") != "0"


# Collecting makes many objects that live to the end; to look through them again and again would
# take a twentieth of the time.
gc.disable()


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    with warming.one_first(os.environ.get("PYTEST_XDIST_WORKER")):
        return (yield)


def pytest_collection_finish(session):
    gc.collect()
    gc.freeze()
    gc.enable()


# Files whose tests need no kernels, or hardly any: they run while the kernels are compiled.
EARLY = (
    "arguments atomic blocks chat_template checkpoint cli_errors convert download evaluation"
    " gguf header hostile hub kinds limits pickle stories streams tokenizer"
)

# Files that one worker should run: the first need the same kernels, which `llama2np warmup` does
# not compile; the second the process from which commands are forked (forks.py); the third wait for
# others for long, and should not be the last.
TOGETHER = (
    "activations architecture batch bulk encoder families folders_hostile kernels_blocks same_bits"
    " serve_classify shares weights",
    "bulk_dask cli_process faults forks generate_command generation notebooks owner state threads",
    "load mpi page_browser serve_clients pull platforms",
)


def pytest_collection_modifyitems(config, items):
    """Order the tests, and leave out the exhaustive ones. Without JIT, skip `compiled` ones."""
    if not EXHAUSTIVE:
        more = [item for item in items if item.get_closest_marker("exhaustive")]
        config.hook.pytest_deselected(items=more)
        items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]
    files = {}
    for item in items:
        files.setdefault(item.path.name, []).append(item)
    count = getattr(config, "workerinput", {}).get("workercount", 1)
    items[:] = [item for part in parts(files, count) for name in part for item in files[name]]
    if NO_JIT:
        skip = pytest.mark.skip(reason="too much arithmetic for plain Python")
        for item in items:
            if item.get_closest_marker("compiled"):
                item.add_marker(skip)


def missing(reason: str):
    """Skip the test, or the module, for want of something; where all is required, fail."""
    if os.environ.get("LLAMA2NP_REQUIRE_ALL"):
        pytest.fail(reason)
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of other programs' answers."""
    folder = os.environ.get("LLAMA2NP_REFERENCE") or ROOT.parent / "shared" / "reference"
    folder = Path(folder).absolute()
    if not folder.is_dir():
        missing(f"the reference data is not at {folder}")
    return folder


@pytest.fixture(scope="session")
def drawing():
    """For tests that need matplotlib."""
    if find_spec("matplotlib") is None:
        missing("matplotlib is not installed")


# --- compiled kernels ---


def pytest_sessionstart(session):
    """Before a run of all tests, begin to compile all kernels, for all workers (pytest-xdist).

    In the user's cache, they are then found by every other test. A run of some tests compiles what
    it needs.
    """
    config = session.config
    chosen = config.option.keyword or config.option.markexpr or config.option.collectonly
    everything = config.args_source == pytest.Config.ArgsSource.TESTPATHS and not chosen
    if everything and not NO_JIT and not hasattr(config, "workerinput"):
        warming.start(config)


@pytest.fixture(scope="session", autouse=True)
def no_background_compiler():
    """The tests use all processors: a second process would not make them faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "prepare", lambda kernels: None)
        warming.wait_for_missing_kernels(patch)
        yield


@pytest.fixture(scope="session")
def warm(tmp_path_factory):
    """A cache that was empty before `llama2np warmup`, and what that said. Copy it to change it."""
    folder = os.environ.get(warming.SHARED)
    if folder is None:
        folder = tmp_path_factory.mktemp("warm")
        warming.finish(warming.popen(folder), folder)
    warming.wait()
    said = json.loads((Path(folder) / warming.SAID).read_text())
    assert (said["status"], said["err"]) == (0, "")
    return Path(folder) / "cache", said["out"]


@pytest.fixture
def cold(warm, tmp_path):
    """cold(name, ...) -> a cache that lacks only the kernels whose files begin so."""

    def cold(*names) -> Path:
        cache = shutil.copytree(warm[0], tmp_path / "cache")
        for name in names:
            files = list(cache.rglob(f"{name}*"))
            assert files, name
            for file in files:
                file.unlink()
        return cache

    return cold


def writable_copy(folder: Path, to: Path) -> Path:
    """Copy a folder of the reference data, which may be read-only, to where a test changes it."""
    shutil.copytree(folder, to, copy_function=shutil.copyfile)
    for each, *_ in os.walk(to):
        os.chmod(each, 0o755)
    return to


# --- models ---


def random_tensors(header: Header, seed: int = 0) -> dict:
    """Small random weights, by name, as `checkpoint.save` takes them."""
    random = np.random.default_rng(seed)
    tensors = {}
    for name, shape in header.tensors():
        values = random.standard_normal(shape, np.float32)
        if header.quantized(name):
            scales = random.random((*shape[:-1], shape[-1] // header.group_size), np.float32)
            tensors[name] = random.integers(-127, 128, shape, np.int8), scales / 500
        else:
            tensors[name] = values * np.float32(0.2) + ("norm" in name)
    return tensors


@pytest.fixture
def write(tmp_path):
    """Write a random checkpoint: write("name.bin", header, seed=0) -> its path."""

    def write(name: str, header: Header, seed: int = 0) -> Path:
        save(tmp_path / name, header, random_tensors(header, seed))
        return tmp_path / name

    return write


@pytest.fixture
def files(tmp_path):
    """A model.bin, a tokenizer.bin for it, and tokenizer.model, in a folder of their own."""
    path = tmp_path / "files"
    path.mkdir()
    write_case(valid("tokenizer.model")[0], path)
    write_case(valid("bin")[0], path)
    return path


def write_chat_folder(folder: Path, config: Config, tokenizer: Path, ends: list) -> None:
    """A folder of Hugging Face's: a random Llama, the tokenizer in a folder, and `ends`."""
    header = Header(1, config, True)
    save(folder.with_suffix(".bin"), header, random_tensors(header))
    export(folder.with_suffix(".bin"), folder, version=-1)
    for path in tokenizer.glob("tokenizer*.json"):
        shutil.copyfile(path, folder / path.name)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))


@pytest.fixture
def interruptible():
    """Lets child processes be interrupted even where these tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def started(popen):
    """start(*words, **options): a Python process, its streams piped; all end with the test."""
    children = []

    def start(*words, **options):
        pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
        command = [sys.executable, "-B", *map(str, words)]
        children.append(popen(command, cwd=ROOT, text=True, **pipes | options))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.communicate()


@pytest.fixture
def python(interruptible):
    """For what happens while Python starts, or depends on settings that are read then."""
    yield from started(subprocess.Popen)


@pytest.fixture
def forked(interruptible):
    """The same in a tenth of the time: a fork of a process that has imported everything."""
    yield from started(forks.Popen)


@pytest.fixture(scope="session", autouse=True)
def fork_server():
    yield
    forks.SERVER.stop()


@pytest.fixture
def labelled(tmp_path):
    """A file of 16 labelled texts."""
    words = {"good": "FINE NICE", "bad": "POOR GRIM"}
    lines = [
        f"{n} ||| {w} {x}\n" for n, some in words.items() for w in some.split() for x in "ABCD"
    ]
    (tmp_path / "train.txt").write_text("".join(lines))
    return tmp_path / "train.txt"


def write_tokenizer(path, count=TINY.vocab_size):
    """Specials, the bytes, and then one letter each, from "A" on; " " is the first of them."""
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n"] + [b"<0x%02X>" % i for i in range(256)]
    pieces += [b" "] + [bytes([ord("A") + i]) for i in range(count - len(pieces) - 1)]
    data = struct.pack("<I", 6)
    for i, piece in enumerate(pieces):
        data += struct.pack("<fi", -i, len(piece)) + piece
    path.write_bytes(data)
    return path


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory):
    """A random model and its tokenizer, for all tests that do not change the files."""
    folder, header = tmp_path_factory.mktemp("tiny"), Header(1, TINY, True)
    save(folder / "tiny.bin", header, random_tensors(header))
    return folder / "tiny.bin", write_tokenizer(folder / "t.bin")


@pytest.fixture
def model(tiny_files):
    return Llama.load(*tiny_files)


def scripted(model, monkeypatch, tokens):
    """Make the network want these tokens, one after the other."""
    script = iter(tokens)

    def forward(read, state, all_logits=False):
        state.pos += len(read)
        logits = np.zeros(TINY.vocab_size, np.float32)
        logits[next(script)] = 1
        return logits

    monkeypatch.setattr(model.transformer, "forward", forward)


def letters(text):
    return [260 + ord(letter) - ord("A") for letter in text]


@pytest.fixture(scope="session", autouse=True)
def freed_memory_is_returned():
    """A command that trains changes malloc for its process, which here is that of all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llama2np.cli.learning.keep_freed_memory", lambda: False)
        yield
