"""The cache of compiled kernels: what is damaged is compiled again, silently."""

import itertools
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from random import Random

import numba
import numpy as np
import pytest
from conftest import ROOT
from numba import int64
from numba.core.bytecode import FunctionIdentity

from llama2np import box
from llama2np.kernels.runtime import cache_folder, sealed
from llama2np.kernels.runtime.cache import Cache
from llama2np.kernels.runtime.jit import exact, inner

posix = pytest.mark.skipif(os.name == "nt", reason="owners and modes")
KEY, CODE = b"a key", b"machine code" * 9

COMPUTES = """
import sys
import numpy as np
from llama2np import kernels
x = np.ones(2, np.float32)
kernels.softmax(x, np.float32(1), x)
print(x[0], min(kernels.counts()[0], 1), kernels.CACHE_FOLDER)
"""


def computes(**env):
    """What `COMPUTES` prints in a process: a value, whether anything was compiled, the folder."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", COMPUTES],
        cwd=env.pop("cwd", ROOT),
        env={**os.environ, **{name: str(value) for name, value in env.items()}},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.returncode, done.stderr) == (0, "")
    value, compiled, folder = done.stdout.split()
    return float(value), int(compiled), Path(folder)


# One file


def test_any_damage_means_not_cached(tmp_path):
    """Every length, and every bit."""
    path = tmp_path / "x.nbc"
    sealed.write(path, KEY, CODE)
    whole = path.read_bytes()
    assert sealed.read(path, KEY) == CODE
    cut = [whole[:length] for length in range(len(whole))]
    flipped = [
        whole[: i // 8] + bytes([whole[i // 8] ^ 1 << i % 8]) + whole[i // 8 + 1 :]
        for i in range(8 * len(whole))
    ]
    for damaged in (*cut, *flipped, whole + b"\0", bytes(len(whole)), whole[::-1]):
        path.write_bytes(damaged)
        assert sealed.read(path, KEY) is None
        assert not path.exists()


def test_a_file_under_the_name_of_another(tmp_path):
    sealed.write(tmp_path / "x", b"another key", CODE)
    assert sealed.read(tmp_path / "x", KEY) is None and not (tmp_path / "x").exists()


@posix
@pytest.mark.parametrize("how", ("pipe", "link", "open to others", "another's", "unreadable"))
def test_what_is_no_file_of_ours(tmp_path, how, monkeypatch):
    path = tmp_path / "x"
    sealed.write(path, KEY, CODE)
    assert path.stat().st_mode & 0o777 == 0o600
    if how in ("pipe", "link"):
        path.rename(tmp_path / "target")
        os.mkfifo(path) if how == "pipe" else path.symlink_to("target")
    elif how == "open to others":
        path.chmod(0o620)
    elif how == "unreadable":
        monkeypatch.setattr(sealed.os, "open", lambda *_: (_ for _ in ()).throw(PermissionError))
    else:
        monkeypatch.setattr(os, "geteuid", lambda real=os.geteuid: real() + 1)
    assert sealed.read(path, KEY) is None
    assert not os.path.lexists(path)


def test_a_folder_there_is_no_harm(tmp_path):
    (tmp_path / "x").mkdir()
    assert sealed.read(tmp_path / "x", KEY) is None


# A kernel


def double(x):
    return x * 2


def compiled(folder):
    """Have `double` compiled or loaded; return which."""
    made = numba.njit(double)
    made._cache = Cache(double, folder)
    assert made(np.float32(3)) == 6
    return "compiled" if made.stats.cache_misses else "loaded"


@pytest.mark.compiled
def test_a_damaged_kernel_is_compiled_again(tmp_path):
    assert [compiled(tmp_path), compiled(tmp_path)] == ["compiled", "loaded"]
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("test_kernel_cache.double-") and path.suffix == ".nbc"
    whole, random = path.read_bytes(), Random(0)
    for place in (None, *random.sample(range(len(whole)), 6)):
        damaged = bytearray(whole if place else b"")
        if place:
            damaged[place] ^= 1 << random.randrange(8)
        path.write_bytes(damaged)
        assert [compiled(tmp_path), compiled(tmp_path)] == ["compiled", "loaded"]


@pytest.mark.compiled
def test_what_cannot_be_loaded_is_compiled_again(tmp_path):
    """Whole, and still of no use: another numba's, say."""
    compiled(tmp_path)
    (path,) = tmp_path.iterdir()
    made = numba.njit(double)
    cache = Cache(double, tmp_path)
    made.compile((numba.float32,))
    _, key = cache._file((numba.float32,), made.overloads[(numba.float32,)].codegen)
    for data in (b"", b"no pickle", b"\x80\x04N."):
        sealed.write(path, key, data)
        assert [compiled(tmp_path), compiled(tmp_path)] == ["compiled", "loaded"]


@pytest.mark.compiled
def test_closures_of_two_processes_are_not_confused(monkeypatch):
    """numba counts its kernels, so two processes may give the same number to two closures of one
    function; a kernel that calls both must call both.
    """

    def times(factor):
        @inner
        def multiplied(x):
            return x * factor

        return multiplied

    def compiled(kernel):
        monkeypatch.setattr(FunctionIdentity, "_unique_ids", itertools.count(10**6))
        kernel.compile((int64,))
        return kernel

    twice, thrice = compiled(times(2)), compiled(times(3))

    @exact
    def both(x):
        return twice(x), thrice(x)

    assert both(1) == (2, 3)


TRIPLES = """
import sys
from pathlib import Path
import numba
from llama2np.kernels.runtime.cache import Cache

def triple(x):
    return 3 * x

made = numba.njit(triple)
made._cache = Cache(triple, Path(sys.argv[1]))
print(made(2), sum(made.stats.cache_misses.values()))
"""


@pytest.mark.compiled
def test_processes_that_fill_one_cache(tmp_path, forked):
    """No word, the same numbers, and the next process finds all."""
    for count, misses in ((3, "1"), (1, "0")):
        children = [forked("-c", TRIPLES, tmp_path) for _ in range(count)]
        for child in children:
            out, err = child.communicate(timeout=600)
            number, missed = out.split()
            assert (child.returncode, err, number) == (0, "", "6")
            assert missed == misses or count > 1


LINKS = """
import sys
from pathlib import Path
from numba import float64
from llama2np.kernels.runtime import jit

jit.CACHE_FOLDER = Path(sys.argv[1])
from llama2np.kernels.runtime.jit import exact, separate
from llama2np.kernels.runtime.link import linked

@separate
def triple(x):
    return 3 * x

call_triple = linked(triple, float64, returns=float64)

@exact
def half_more(x):
    return call_triple(x) / 2

number = half_more(2.0)
compiled = [each for each in (triple, half_more) if each.stats.cache_misses]
print(number, *(each.py_func.__name__ for each in compiled))
"""


@pytest.mark.compiled
def test_kernels_that_are_called_by_address(tmp_path, forked):
    """Each is compiled or loaded by itself, and its caller finds it, wherever that comes from."""
    for missing in (["triple", "half_more"], ["triple"], ["half_more"], []):
        for name in missing:
            for path in tmp_path.glob(f"*{name}-*"):
                path.unlink()
        out, err = forked("-c", LINKS, tmp_path).communicate(timeout=600)
        number, *compiled = out.split()
        assert (number, compiled, err) == ("3.0", missing, "")


@pytest.mark.compiled
def test_a_run_after_damage(cold):
    """All at once: what is damaged is compiled again, without a word."""
    cache = cold()
    damaged = [*cache.rglob("sampling.softmax*")]
    for path in damaged:
        os.truncate(path, 0)
    assert damaged and computes(NUMBA_CACHE_DIR=cache)[:2] == (0.5, 1)
    assert all(path.stat().st_size > 1000 for path in damaged)


# The folder


@pytest.fixture
def homes(tmp_path, monkeypatch):
    """A named folder, and a user's cache; the package is installed, not in a checkout."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setattr(cache_folder, "_package", lambda: tmp_path / "site-packages" / "llama2np")
    return tmp_path


def chosen():
    """The home of the folder that is chosen."""
    folder = cache_folder.cache_folder()
    return folder and folder.parent


@posix
def test_it_is_ours_alone(homes):
    before = os.umask(0)
    try:
        folder = cache_folder.cache_folder()
    finally:
        os.umask(before)
    assert folder.parent == homes / "named" and folder.stat().st_mode & 0o777 == 0o700
    assert cache_folder.cache_folder() == folder and not list(folder.iterdir())


@posix
@pytest.mark.parametrize("how", ("group", "others", "another's", "link", "file"))
def test_one_that_is_not_is_not_used(homes, how):
    folder = cache_folder.cache_folder()
    if how in ("group", "others"):
        folder.chmod(0o770 if how == "group" else 0o707)
    elif how == "another's":
        if os.geteuid():
            pytest.skip("only root may give folders away")
        os.chown(folder, 12345, -1)
    else:
        folder.rename(homes / "elsewhere")
        folder.symlink_to(homes / "elsewhere") if how == "link" else folder.write_bytes(b"")
    assert chosen() == homes / "user" / "llama2np"


def test_where_nothing_can_be_written_another_is_chosen(homes, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", os.devnull + "/x")
    assert chosen() == homes / "user" / "llama2np"
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull + "/x")
    assert chosen() is None


def test_relative_folders(homes, monkeypatch):
    """NUMBA_CACHE_DIR is taken from where the process begins; XDG's rule is to ignore it."""
    monkeypatch.chdir(homes)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "here")
    assert chosen() == homes / "here"
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "there")
    monkeypatch.setenv("HOME", str(homes / "home"))
    monkeypatch.setenv("USERPROFILE", str(homes / "home"))
    assert chosen() == homes / "home" / ".cache" / "llama2np"


def test_only_a_checkout_keeps_it_beside_the_source(homes, monkeypatch):
    """pip uninstall leaves files that it does not know, and their folders."""
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    assert chosen() == homes / "user" / "llama2np"
    (homes / "site-packages").mkdir()
    (homes / "site-packages" / "bootstrap.py").write_text("")
    assert chosen() == homes / "site-packages" / "llama2np" / "kernels" / "__pycache__"


def test_no_owners_on_windows(homes, monkeypatch):
    monkeypatch.delattr(os, "geteuid", raising=False)
    folder = cache_folder.cache_folder()
    folder.chmod(0o777)
    assert cache_folder.cache_folder() == folder


def zipped(path, change=b""):
    """The package as a wheel has it, with something added to the text of a kernel."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((ROOT / "llama2np").rglob("*.py")):
            text = file.read_bytes() + change * (file.name == "rows.py")
            archive.writestr(str(file.relative_to(ROOT)), text)
        for file in box.FOLDER.glob("*.bin"):
            archive.write(file, file.relative_to(ROOT))
    return path


def test_archives_of_two_versions(tmp_path):
    """Their kernels are not mixed up."""
    archives = zipped(tmp_path / "a"), zipped(tmp_path / "b"), zipped(tmp_path / "c", b"\n# new\n")
    first, same, other = (
        list(cache_folder._sources(zipfile.Path(archive, "llama2np/kernels/")))
        for archive in archives
    )
    assert first == same != other
    assert first == list(cache_folder._sources(ROOT / "llama2np" / "kernels"))


@pytest.mark.compiled
def test_a_package_in_an_archive(tmp_path):
    """Its kernels are kept, too."""
    env = {"XDG_CACHE_HOME": tmp_path / "cache", "NUMBA_CACHE_DIR": "", "cwd": tmp_path}
    env["PYTHONPATH"] = zipped(tmp_path / "a.whl")
    value, compiled, folder = computes(**env)
    assert (value, compiled, folder.parent) == (0.5, 1, tmp_path / "cache" / "llama2np")
    assert computes(**env) == (0.5, 0, folder)


def test_a_bundled_model_in_an_archive(tmp_path):
    """It is unpacked for as long as the process lives: a file in an archive cannot be mapped.

    Kernels run without a place to keep them.
    """
    archive = zipped(tmp_path / "a.whl")
    code = (
        "from llama2np import Llama, box; print(Llama.load('stories-box').config.dim, box.FOLDER)"
    )
    env = {"XDG_CACHE_HOME": os.devnull + "/x", "NUMBA_CACHE_DIR": "", "PYTHONPATH": str(archive)}
    done = subprocess.run(
        [sys.executable, "-B", "-c", code + COMPUTES],
        cwd=tmp_path,
        env=os.environ | env,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    dim, folder, *computed = done.stdout.split()
    assert int(dim) > 0 and folder != str(box.FOLDER) and not Path(folder).exists()
    assert computed == ["0.5", "1", "None"] or numba.config.DISABLE_JIT
