"""Files are written whole or not at all: failures of every call, other writers, odd targets."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from itertools import count
from pathlib import Path

import forks
import numpy as np
import pytest
from conftest import TINY, parameters, random_tensors

from llama2np import atomic
from llama2np.atomic import replacing, replacing_all
from llama2np.cli.export import main as export
from llama2np.formats import checkpoint
from llama2np.formats.checkpoint import Header
from llama2np.model.transformer import State
from tools.faults import ERRORS, WRITERS, Fault, check_write
from tools.hostile import valid, write_case

posix = pytest.mark.skipif(os.name == "nt", reason="modes, pipes, links")
linux = pytest.mark.skipif(sys.platform != "linux", reason="/dev/stdout as Linux has it")


def write(path, data=b"new"):
    with replacing(path) as file:
        file.write(data)


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


# Failures


CASES = [(writer, error) for writer in WRITERS for error in ERRORS]
OFTEN = [("tokenizer", error) for error in ERRORS if error != "EACCES"] + [
    (writer, "EIO") for writer in WRITERS
]


@pytest.mark.parametrize("over", (True, False), ids=("over", "new"))
@pytest.mark.parametrize("case", parameters(CASES, OFTEN), ids="-".join)
def test_every_call_fails_in_turn(tmp_path, case, over):
    writer, error = case
    write_case(valid("write-failure")[0], tmp_path)
    for at in count():
        if not check_write(Fault(writer, at, error, over), tmp_path):
            break
    assert at > 5


def test_a_fault_that_does_harm_is_noticed(tmp_path, monkeypatch):
    """Else nothing here would prove anything."""
    write_case(valid("write-failure")[0], tmp_path)
    monkeypatch.setattr(atomic._NewFile, "clean", lambda self: None)
    with pytest.raises(AssertionError, match="part"):
        check_write(Fault("export 0", 4), tmp_path)


@pytest.mark.parametrize("moment", ("before", "after"))
def test_a_second_interrupt_leaves_nothing(tmp_path, monkeypatch, moment):
    """While the file of the first is being removed."""
    (tmp_path / "x").write_bytes(b"old")
    interrupts = []

    def interrupted(path, real=os.unlink):
        if not interrupts:
            interrupts.append(path)
            if moment == "after":
                real(path)
            raise KeyboardInterrupt
        real(path)

    monkeypatch.setattr(os, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "x") as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert interrupts and os.listdir(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


INTERRUPTED = """
import os, signal, sys, time
from llama2np import atomic
from llama2np.cli.export import main
waits = [0.3]
def slow_removal(path, real=atomic._unlink):
    print("removing", flush=True)
    if waits:  # for the second Ctrl-C
        time.sleep(waits.pop())
    real(path)
atomic._unlink = slow_removal
def progress(count):
    print("writing", flush=True)
    time.sleep(60)
import llama2np.cli.export as command
command._progress = lambda source: __import__("contextlib").nullcontext(progress)
sys.exit(main(sys.argv[1:], "export.py"))
"""


@posix
@pytest.mark.parametrize("version", ("0", "-1"))
def test_ctrl_c_twice(files, tmp_path, forked, version):
    words = [tmp_path / "out", "--bin", files / "model.bin", "--version", version]
    child = forked("-c", INTERRUPTED, *words)
    assert child.stdout.readline() == "writing\n"
    child.send_signal(signal.SIGINT)
    assert child.stdout.readline() == "removing\n"
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (130, "export.py: interrupted\n")
    assert os.listdir(tmp_path) == ["files"]


# Others that write or read the same


def test_many_writers_of_one_target(tmp_path):
    """Each of them succeeds, and the file is that of one of them, at any time."""
    texts = [bytes([letter]) * 300_000 for letter in b"abcd"]
    path, seen = tmp_path / "x", set()
    write(path, texts[0])

    def repeat(text):
        for _ in range(10):
            write(path, text)

    threads = [threading.Thread(target=repeat, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen.add(path.read_bytes())
    assert seen <= set(texts) and os.listdir(tmp_path) == ["x"]


@pytest.mark.skipif(sys.platform == "win32", reason="has no locks of folders")
def test_two_writers_of_the_files_of_a_folder(tmp_path, monkeypatch):
    """The second waits until the first has renamed all of its files."""
    paths, begun = (tmp_path / "weights", tmp_path / "config"), threading.Event()
    replace = os.replace

    def slow(source, target):
        replace(source, target)
        if not begun.is_set():  # the first file of the first writer
            begun.set()
            second.start()
            second.join(0.2)

    def write(data):
        with replacing_all(dict.fromkeys(paths, 1)) as files:
            for file in files:
                file.write(data)

    second = threading.Thread(target=write, args=(b"2",))
    monkeypatch.setattr(os, "replace", slow)
    write(b"1")
    second.join()
    assert [path.read_bytes() for path in paths] == [b"2", b"2"]
    assert len(os.listdir(tmp_path)) == 2


def test_two_exports_to_one_target(tmp_path, files):
    header = Header(0, TINY, True)
    sources = [tmp_path / "0.bin", tmp_path / "1.bin"]
    for seed, path in enumerate(sources):
        checkpoint.save(path, header, random_tensors(header, seed))
    command = [sys.executable, "-m", "llama2np", "export", tmp_path / "x.bin", "--bin"]
    root = Path(__file__).parents[1]
    both = [forks.Popen([*command, path], cwd=root, stdout=-3) for path in sources]
    assert [each.wait(60) for each in both] == [0, 0]
    wholes = []
    for path in sources:
        assert export([str(tmp_path / "y.bin"), "--bin", str(path)], "export.py") == 0
        wholes.append((tmp_path / "y.bin").read_bytes())
    assert (tmp_path / "x.bin").read_bytes() in wholes


@pytest.mark.compiled
def test_two_threads_save_to_one_file(model, tmp_path):
    states = [model.new_state() for _ in range(2)]
    for i, state in enumerate(states):
        model.forward([1, 2, 3 + i], state)
    states = [state.fork() for state in states for _ in range(4)]  # one thread may use each
    threads = [threading.Thread(target=s.save, args=(tmp_path / "s.npz",)) for s in states]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tokens = State.load(tmp_path / "s.npz", model.config).tokens
    assert list(np.asarray(tokens)[:3]) in ([1, 2, 3], [1, 2, 4])
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("source", ("x.bin", "x.bin.part", "x.bin.0123456789abcdef.part"))
def test_a_source_with_any_name_survives(tmp_path, source):
    header, source = Header(1, TINY, True), tmp_path / source
    checkpoint.save(source, header, random_tensors(header))
    before, words = source.read_bytes(), ["--version", "1", "--bin", str(source)]
    assert export([str(tmp_path / "x.bin"), *words], "export.py") == 0
    assert source.read_bytes() == before == (tmp_path / "x.bin").read_bytes()


def test_what_others_put_beside_it_stays(tmp_path):
    (tmp_path / "x.part").write_bytes(b"mine")
    (tmp_path / "else").write_bytes(b"precious")
    (tmp_path / "y.part").symlink_to("else")
    write(tmp_path / "x")
    write(tmp_path / "y")
    assert (tmp_path / "x.part").read_bytes() == b"mine"
    assert (tmp_path / "else").read_bytes() == b"precious"


# Permissions


@posix
@pytest.mark.parametrize("mode", (0o600, 0o640, 0o664, 0o755, 0o400))
def test_the_target_keeps_its_permissions(tmp_path, umask, mode):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(mode)
    if not os.access(path, os.W_OK):
        pytest.skip("a file that may not be written is refused")
    umask(0o077)
    with replacing(path) as file:
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == mode  # never more, for a moment
        file.write(b"new")
    assert (stat.S_IMODE(path.stat().st_mode), path.read_bytes()) == (mode, b"new")


@posix
@pytest.mark.parametrize("mask", (0o022, 0o002, 0o077))
def test_a_new_file_has_those_of_the_umask(tmp_path, umask, mask):
    umask(mask)
    write(tmp_path / "x")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o666 & ~mask


@posix
def test_the_owner_stays_where_the_system_lets_us(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    if os.geteuid():
        pytest.skip("only root may give files away")
    os.chown(path, 12345, 23456)
    write(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)


@posix
def test_another_group_gets_nothing(tmp_path, monkeypatch):
    """Where the group cannot be kept, the new group has no permissions."""
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(0o664)
    old = os.stat(path)
    given = os.stat_result((*old[:5], old.st_gid + 1, *old[6:10]))
    monkeypatch.setattr(os, "fchown", lambda *arguments: (_ for _ in ()).throw(PermissionError))
    with open(path, "rb") as file:
        atomic._give_permissions(file.fileno(), given)
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


def test_a_file_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(0o444)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may
    with pytest.raises(PermissionError, match="x"):
        write(path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["x"]


# Targets that are no files


@posix
def test_links_are_followed(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/x")
    write(tmp_path / "link", b"first")  # its target is not there yet
    write(tmp_path / "link", b"second")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "folder/x").read_bytes() == b"second"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError) as raised:
        write(tmp_path / "loop")
    assert raised.value.errno == errno.ELOOP and (tmp_path / "loop").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["folder", "link", "loop"]


@posix
def test_a_pipe_that_nobody_reads_is_an_error(tmp_path, capsys, files):
    os.mkfifo(tmp_path / "pipe")
    words = ["--bin", str(files / "model.bin")]
    assert export([str(tmp_path / "pipe"), *words], "export.py") == 1
    assert capsys.readouterr().err == (
        f"export.py: {tmp_path}/pipe: a pipe or device without a reader\n"
    )
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


@posix
def test_a_pipe_that_somebody_reads(tmp_path, files):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    words = ["--bin", str(files / "model.bin")]
    assert export([str(tmp_path / "pipe"), *words], "export.py") == 0
    assert export([str(tmp_path / "file"), *words], "export.py") == 0
    assert os.read(reader, 10**6) == (tmp_path / "file").read_bytes()
    os.close(reader)


@posix
def test_devices(capsys, files):
    """What takes anything, and what is always full."""
    words = ["--bin", str(files / "model.bin"), "--version", "1"]
    assert export([os.devnull, *words], "export.py") == 0
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    if Path("/dev/full").exists():
        assert export(["/dev/full", *words], "export.py") == 1
        assert capsys.readouterr().err == "export.py: /dev/full: No space left on device\n"


@linux
@pytest.mark.parametrize("how", ("pipe", "file", "appended"))
def test_standard_output(files, tmp_path, forked, how):
    """It holds the checkpoint, and the summary is on standard error."""
    words = ["--bin", files / "model.bin"]
    assert export([str(tmp_path / "x"), *map(str, words)], "export.py") == 0
    (tmp_path / "out").write_bytes(b"before" if how == "appended" else b"")
    with open(tmp_path / "out", "ab") as out:
        stdout = subprocess.PIPE if how == "pipe" else out
        command = ["-m", "llama2np", "export", "/dev/stdout", *words]
        child = forked(*command, stdout=stdout, encoding="latin-1")
        found, err = child.communicate(timeout=60)
    if how != "pipe":
        found = (tmp_path / "out").read_text("latin-1").removeprefix("before")
    assert found == (tmp_path / "x").read_text("latin-1")
    assert child.returncode == 0 and err.startswith("wrote /dev/stdout: version 0")


@pytest.mark.parametrize("name", ("folder", "new/", "missing/x"))
def test_what_cannot_be_a_file(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write(f"{tmp_path}/{name}")
    assert os.listdir(tmp_path) == ["folder"]


def test_names_at_their_limits(tmp_path):
    for name in ("a" * 255, "ü" * 127, "x"):
        write(tmp_path / name)
    write(os.fsencode(tmp_path / "bytes"))
    assert len(os.listdir(tmp_path)) == 4
    with pytest.raises(TypeError):
        write(1)  # not standard output


def test_errors_of_other_files_keep_their_names(tmp_path):
    """A source that vanishes is not the target's fault, whatever it is called."""
    with pytest.raises(FileNotFoundError) as raised, replacing(tmp_path / "x"):
        open(tmp_path / "source.part")
    assert raised.value.filename == str(tmp_path / "source.part") or raised.value.filename == (
        tmp_path / "source.part"
    )


# Other systems


def test_a_system_that_has_less(tmp_path, monkeypatch):
    """No permissions, no links, folders that cannot be opened, no way to sync: as on Windows."""
    for name in ("fchown", "fchmod", "link", "set_blocking", "O_NONBLOCK", "O_NOCTTY"):
        monkeypatch.delattr(os, name, raising=False)

    def opened(path, flags, *arguments, real=os.open):
        if os.path.isdir(path):
            raise PermissionError
        return real(path, flags, *arguments)

    def unsynced(descriptor):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", unsynced)
    for data in (b"old", b"new"):
        with replacing_all({tmp_path / "x": 3, tmp_path / "y": 3}) as both:
            for file in both:
                file.write(data)
    assert [(tmp_path / name).read_bytes() for name in "xy"] == [b"new"] * 2
    assert sorted(os.listdir(tmp_path)) == ["x", "y"]
