"""Torch archives: what is read, and that nothing in a malicious one is run."""

import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2np.cli.export import main as export
from llama2np.formats import pickle_data
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.pickle_data import PickleError
from llama2np.formats.torch_zip import TorchFile
from tools.torch_files import Tensor, pickled, write_archive

VALUES = np.arange(24, dtype=np.float32)
FLOATS = {"data/0": VALUES.tobytes(), "byteorder": b"little"}


def archive(folder: Path, pickle_bytes: bytes, **files: bytes) -> Path:
    path = folder / "model.pt"
    write_archive(path, {"data.pkl": pickle_bytes} | FLOATS | files)
    return path


def read(tensor) -> np.ndarray:
    return np.concatenate(list(tensor.blocks()))


# What is read


def test_shapes_strides_and_offsets(tmp_path):
    content = {
        "whole": Tensor("0", "float32", (4, 6)),
        "transposed": Tensor("0", "float32", (6, 4), (1, 6)),
        "part": Tensor("0", "float32", (2, 3), (12, 2), offset=1),
        "scalar": Tensor("0", "float32", (), offset=5),
        "nothing": Tensor("0", "float32", (0, 3)),
        "step": 7,
    }
    tensors = TorchFile(archive(tmp_path, pickled(content))).tensors()
    whole = VALUES.reshape(4, 6)
    np.testing.assert_array_equal(read(tensors["whole"]), whole)
    np.testing.assert_array_equal(read(tensors["transposed"]), whole.T)
    np.testing.assert_array_equal(read(tensors["part"]), whole[::2, 1::2])
    assert read(tensors["scalar"]) == [5] and tensors["nothing"].shape == (0, 3)
    assert tensors.keys() == content.keys() - {"step"}


@pytest.mark.parametrize("dtype", ("float32", "float16", "bfloat16"))
def test_types(tmp_path, dtype):
    import ml_dtypes

    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    path = tmp_path / "x.pt"
    data = VALUES.astype(kind).tobytes()
    content = {"x": Tensor("a", dtype, (4, 6))}
    write_archive(path, {"data.pkl": pickled(content), "data/a": data})
    (tensor,) = TorchFile(path).tensors().values()
    assert tensor.dtype == dtype and tensor.nbytes == len(data)
    np.testing.assert_array_equal(read(tensor), VALUES.reshape(4, 6))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=4)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3).map(OrderedDict)
    ),
    max_leaves=20,
)


@given(PLAIN, st.integers(1, pickle.HIGHEST_PROTOCOL))
def test_plain_data_is_as_pickle_reads_it(value, protocol):
    assert pickle_data.load(pickle.dumps(value, protocol)) == value


@given(st.binary(max_size=60))
def test_any_pickle_is_read_or_refused(data):
    try:
        pickle_data.load(data)
    except PickleError:
        pass


# What is refused. A canary file would be there if anything had been run.

SYSTEM = b"cposix\nsystem\n"
TOUCH = b"X\x0c\0\0\0touch canary"
MALICIOUS = {
    "os.system": (b"\x80\2cos\nsystem\n(" + TOUCH + b"tR.", "os.system"),
    "posix.system": (b"\x80\2" + SYSTEM + b"(" + TOUCH + b"tR.", "posix.system"),
    "eval": (b"\x80\2c__builtin__\neval\n(" + TOUCH + b"tR.", "__builtin__.eval"),
    "builtins.eval": (b"\x80\2cbuiltins\neval\n(" + TOUCH + b"tR.", "builtins.eval"),
    "stack global": (
        b"\x80\4\x8c\x02os\x8c\x06system\x93" + TOUCH + b"\x85R.",
        "os.system",
    ),
    "nested reduce": (
        b"\x80\2ctorch._utils\n_rebuild_tensor_v2\n(" + SYSTEM + b"(" + TOUCH + b"tRtR.",
        "posix.system",
    ),
    "in the arguments of OrderedDict": (
        b"\x80\2ccollections\nOrderedDict\n(" + SYSTEM + b"(" + TOUCH + b"tRtR.",
        "posix.system",
    ),
    "inst": (b"(" + TOUCH + b"ios\nsystem\n.", "os.system"),
    "obj": (b"\x80\2(ccollections\nOrderedDict\no.", "OBJ"),
    "newobj": (b"\x80\2csubprocess\nPopen\n" + TOUCH + b"\x85\x81.", "subprocess.Popen"),
    "newobj of a number": (b"\x80\2K\1)\x81.", "an object of a int"),
    "newobj of a tensor's storage": (b"\x80\2ctorch\nFloatStorage\n)\x81.", "no model and"),
    "in an attribute": (
        b"\x80\2cargparse\nNamespace\n)\x81}X\1\0\0\0x" + SYSTEM + TOUCH + b"\x85Rsb.",
        "posix.system",
    ),
    "through getattr": (
        b"\x80\2cbuiltins\ngetattr\n(cos\n__dict__\nX\6\0\0\0systemtR" + TOUCH + b"\x85R.",
        "os.__dict__",
    ),
    "a nested pickle": (b"\x80\2cpickle\nloads\n" + TOUCH + b"\x85R.", "pickle.loads"),
    "eval of another module": (b"\x80\2cpandas\neval\n" + TOUCH + b"\x85R.", "pandas.eval"),
    "code": (b"\x80\2ctypes\nCodeType\n)R.", "types.CodeType"),
    "extension": (b"\x80\2\x82\1.", "EXT1"),
    "dotted name": (b"\x80\4\x8c\x05torch\x8c\x0b_utils.eval\x93.", "torch._utils.eval"),
    "name on the stack": (b"\x80\4]\x8c\x01x\x93.", "damaged"),
    "call of a string": (b"\x80\2X\1\0\0\0x)R.", "calls a str"),
    "call of a storage type": (b"\x80\2ctorch\nFloatStorage\n)R.", "FloatStorage"),
    "state of a name": (b"\x80\2ccollections\nOrderedDict\n}b.", "Name"),
    "storage loader": (b"\x80\2ctorch.storage\n_load_from_bytes\n.", "_load_from_bytes"),
    "foreign reference": (b"\x80\2(X\1\0\0\0xtQ.", "damaged"),
    "huge memo": (b"\x80\2]r\xff\xff\xff\xff0.", "it remembers more than"),
    "pop": (b"\x80\2]0.", "POP"),
    "absurd string": (b"\x80\4\x8d\xff\xff\xff\xff\xff\xff\xff\x0f.", "damaged"),
    "no end": (b"\x80\2]", "damaged"),
    "empty": (b"", "damaged"),
}


@pytest.mark.parametrize("case", MALICIOUS)
def test_malicious_pickles(tmp_path, capsys, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    data, match = MALICIOUS[case]
    path = archive(tmp_path, data)
    assert export(["out.bin", "--checkpoint", str(path)], "export.py") == 1
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and match in told.err and str(path) in told.err
    assert not told.out and os.listdir(tmp_path) == ["model.pt"]


def test_those_pickles_would_run_something(tmp_path, monkeypatch):
    """Else the tests above would prove nothing."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(MALICIOUS["posix.system"][0])
    assert os.listdir(tmp_path) == ["canary"]


@pytest.mark.parametrize(
    "record, match",
    (
        (Tensor("0", "float32", (5, 6)), "needs values up to 30"),
        (Tensor("0", "float32", (4, 6), offset=1), "up to 25"),
        (Tensor("0", "float32", (4, 6), (7, 1)), "up to 27"),
        (Tensor("0", "float32", (4, 6), (2**40, 1)), "its storage has 24"),
        (Tensor("0", "float32", (2**40, 2**40), (0, 0)), "its storage has 24"),
        (Tensor("0", "float32", (2**50, 1)), "claims"),
        (Tensor("0", "float32", (-1, 6)), "claims"),
        (Tensor("0", "float32", (4, 6), offset=-1), "claims"),
        (Tensor("0", "float32", (4, 6), (6,)), "strides"),
        (Tensor("1", "float32", (4, 6)), "data/1 is missing"),
        (Tensor("../0", "float32", (4, 6)), "missing"),
    ),
    ids=str,
)
def test_tensors_that_are_not_there(tmp_path, record, match):
    with pytest.raises(CheckpointError, match=match):
        TorchFile(archive(tmp_path, pickled({"x": record}))).tensors()


def test_a_type_that_is_no_weights(tmp_path):
    data = pickled({"x": Tensor("0", "float32", (4, 6))}).replace(b"FloatSt", b"LongSt")
    with pytest.raises(CheckpointError, match="x: is int64, expected float32"):
        TorchFile(archive(tmp_path, data)).tensors()


# Archives

GOOD = {"data.pkl": pickled({"x": Tensor("0", "float32", (4, 6))})} | FLOATS


def test_an_absurd_declared_size(tmp_path):
    """The directory says 2^60 bytes, of a file of some hundred."""
    path = archive(tmp_path, GOOD["data.pkl"])
    data = path.read_bytes()
    size = struct.pack("<QQ", 96, 96)
    at = data.rindex(size)  # the directory's entry of data/0
    path.write_bytes(data[:at] + struct.pack("<QQ", 2**60, 2**60) + data[at + 16 :])
    with pytest.raises(CheckpointError, match="data/0 claims 1,152,921,504,606,846,976 bytes"):
        TorchFile(path)


def test_compressed_twice_overlapping(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(10**6))
    with pytest.raises(CheckpointError, match="is compressed"):
        TorchFile(path)
    with pytest.warns(UserWarning), zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", GOOD["data.pkl"])
        file.writestr("archive/data.pkl", b"other")
    with pytest.raises(CheckpointError, match="twice"):
        TorchFile(path)
    write_archive(path, GOOD | {"data/1": bytes(96)})
    data = bytearray(path.read_bytes())
    first, second = (data.index(b"PK\3\4", data.index(name)) for name in (b"data.pkl", b"data/0"))
    at = data.rindex(struct.pack("<Q", second))  # the directory's place of what follows data/0
    data[at : at + 8] = struct.pack("<Q", first)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="overlap"):
        TorchFile(path)


@pytest.mark.parametrize(
    "files, match",
    (
        (GOOD | {"byteorder": b"big"}, "byteorder"),
        (FLOATS, "not one that torch.save wrote"),
        (GOOD | {"data.pkl": pickled(1)}, "expected a dictionary"),
        (GOOD | {"data.pkl": bytes(2**23 + 1)}, "its pickle has 8,388,609 bytes"),
    ),
    ids=("big-endian", "no pickle", "a number", "large pickle"),
)
def test_archives_of_something_else(tmp_path, files, match):
    write_archive(tmp_path / "x.pt", files)
    with pytest.raises(CheckpointError, match=match):
        TorchFile(tmp_path / "x.pt").tensors()


@pytest.mark.parametrize(
    "data, match",
    (
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "torch before 1.6"),
        (b"", "not a torch file"),
        (b"{}", "not a torch file"),
        (b"PK\3\4", "truncated"),
    ),
    ids=("legacy", "empty", "json", "only a start"),
)
def test_files_that_are_no_archive(tmp_path, capsys, data, match):
    (tmp_path / "x.pt").write_bytes(data)
    arguments = [str(tmp_path / "out.bin"), "--checkpoint", str(tmp_path / "x.pt")]
    assert export(arguments, "export.py") == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and match in told
    assert os.listdir(tmp_path) == ["x.pt"]


def test_truncated_anywhere(tmp_path):
    path = archive(tmp_path, GOOD["data.pkl"])
    data = path.read_bytes()
    for size in range(0, len(data), 7):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            TorchFile(path)


@settings(max_examples=examples(300))
@given(st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=5))
def test_damage_anywhere_is_refused_or_harmless(tmp_path_factory, changes):
    path = archive(tmp_path_factory.getbasetemp(), GOOD["data.pkl"])
    data = bytearray(path.read_bytes())
    for at, value in changes:
        data[at % len(data)] = value
    path.write_bytes(data)
    try:
        for tensor in TorchFile(path).tensors().values():
            list(tensor.blocks())
    except CheckpointError as error:
        assert str(path) in str(error)
