"""What trainers keep beside the weights is passed over, without importing or running any of it."""

import argparse
import collections
import datetime
import decimal
import enum
import fractions
import functools
import importlib
import itertools
import json
import os
import pathlib
import pickle
import random
import re
import subprocess
import sys
import types
import uuid
from dataclasses import dataclass

import numpy as np
import pytest
from conftest import parameters
from test_convert_head import meta_tensors, same, save_torch

from llama2np.cli import main
from llama2np.formats import llama2c, pickle_data
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.pickle_data import Placeholder
from llama2np.formats.torch_zip import TorchFile
from tools.torch_files import write_archive

ARGUMENTS = {"dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 64}
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Colour(enum.Enum):
    RED = 1


class Flags(enum.IntFlag):
    A = 1
    B = 2


class Plain:
    def __init__(self):
        self.a, self.me = [1, 2], self


class Slots:
    __slots__ = ("a",)

    def __init__(self):
        self.a = {0.5: (1, 2)}


class Listed(list):
    pass


class Mapped(dict):
    pass


class Made:
    """Made by a function, and then given a state."""

    def __reduce__(self):
        return make, (1, "x"), {"a": 1}, iter([1, 2]), iter([("k", "v")])

    def append(self, *_):
        pass

    __setitem__ = __setstate__ = append


def make(*_):
    return Made()


@dataclass
class Data:
    a: int = 1
    b: tuple = (1, None)


Point = collections.namedtuple("Point", "x y")

EXTRAS = {
    "NumPy scalars": [np.float32(4.5), np.int64(-3), np.bool_(True), np.float16(1), np.uint8(7)],
    "other NumPy scalars": [
        np.datetime64("2024-01-01"),
        np.str_("x"),
        np.complex64(1),
        np.bytes_(b"x"),
    ],
    "NumPy arrays": [np.zeros((2, 3)), np.arange(5, dtype=">i4"), np.array(["a", None], object)],
    "dtypes": [np.dtype("float32"), np.dtype([("a", "i4"), ("b", "f8")]), np.float64],
    "random states": [np.random.RandomState(1), np.random.default_rng(2), random.Random(3)],
    "sets": [{1, 2}, {"a", (1, 2)}, set(), frozenset([1]), frozenset(), {frozenset([1])}],
    "dictionaries": [
        collections.OrderedDict(a=1),
        collections.defaultdict(list, {"a": [1]}),
        collections.defaultdict(dict, {0.5: {}}),
        collections.Counter("aab"),
        Mapped(a=1),
        {0.5: 1, (1, "x"): 2, None: 3, -1: 4, 2**70: 5, b"x": 6, True: 7, "a": 8},
    ],
    "lists": [collections.deque([1, 2], 5), Listed([1]), range(3), slice(1, 2), bytearray(b"x")],
    "numbers": [decimal.Decimal("1.5"), fractions.Fraction(1, 3), 1 + 2j, 2**100, float("nan")],
    "times": [
        datetime.datetime.now(),
        datetime.datetime.now(datetime.timezone.utc),
        datetime.date.today(),
        datetime.timedelta(1),
        datetime.time(1),
    ],
    "paths": [pathlib.Path("out"), pathlib.PurePosixPath("/a"), pathlib.PureWindowsPath("c:/a")],
    "arguments": [argparse.Namespace(lr=1e-3, out=pathlib.Path("x")), types.SimpleNamespace(a=1)],
    "enums": [Colour.RED, Flags.A | Flags.B, re.compile("a+"), re.IGNORECASE],
    "objects": [Plain(), Slots(), Data(), Made(), Point(1, 2), uuid.uuid4(), object()],
    "functions": [make, functools.partial(make, 1), Plain, len, ValueError("x"), int],
    "counters": [itertools.count(3)] if sys.version_info < (3, 14) else [],
}


def write_with(path, extra: bytes, tensors=None, arguments=ARGUMENTS):
    """A trainer's file that has the pickle `extra` as one more value."""
    save_torch(meta_tensors() if tensors is None else tensors, path, model_args=arguments)
    file = TorchFile(path)
    files = {
        n.removeprefix("archive/"): bytes(file._data[a:b]) for n, (a, b) in file._files.items()
    }
    name = b"X\5\0\0\0extra"
    files["data.pkl"] = files["data.pkl"][:-1] + name + extra[:-1] + b"s."
    write_archive(path, files)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "plain.pt"
    save_torch(meta_tensors(), path, model_args=ARGUMENTS)
    return llama2c.read_pt(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of itertools
@pytest.mark.parametrize("protocol", parameters(PROTOCOLS, [2, pickle.HIGHEST_PROTOCOL]))
@pytest.mark.parametrize("kind", EXTRAS)
def test_extras_are_passed_over(tmp_path, plain, kind, protocol):
    values = EXTRAS[kind]
    if protocol < 2:
        values = [value for value in values if not isinstance(value, Slots)]
    same(llama2c.read_pt(write_with(tmp_path / "x.pt", pickle.dumps(values, protocol))), plain)


TORCH = {
    "dtype": b"ctorch\nbfloat16\n",
    "device": b"ctorch\ndevice\nX\3\0\0\0cpu\x85R",
    "size": b"ctorch\nSize\n(K\1K\2t\x85R",
    "layout": b"ctorch.serialization\n_get_layout\nX\x0d\0\0\0torch.strided\x85R",
    "complex tensor": b"ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\n"
    b"ComplexFloatStorage\nX\1\0\0\x009X\3\0\0\0cpuK\1tQK\0)))ccollections\nOrderedDict\n)RtR",
    "sparse tensor": b"ctorch._utils\n_rebuild_sparse_tensor\n(K\1K\2tR",
    "parameter with attributes": b"ctorch._utils\n_rebuild_parameter_with_state\n"
    b"(K\1\x88}}X\1\0\0\0aK\1stR",
    "tensor with attributes": b"ctorch._tensor\n_rebuild_from_type_v2\n("
    b"ctorch._utils\n_rebuild_tensor_v2\nctorch\nTensor\n"
    b"((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\1tQK\0K\1\x85K\1\x85"
    b"\x89ccollections\nOrderedDict\n)Rt}tR",
    "tensor of a class": b"ctorch._tensor\n_rebuild_from_type_v2\n("
    b"ctorch._utils\n_rebuild_tensor_v2\ncmy\nTensor\n(K\1K\2t}tR",
    "a trainer's own": b"cmy.trainer\nConfig\n)\x81}(X\1\0\0\0aK\1ub",
    "dtype of old NumPy": b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\2\0\0\0f8K\0K\1\x87R"
    b"(K\3X\1\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tbc_codecs\nencode\n"
    b"X\x08\0\0\0\0\0\0\0\0\0\0\0X\6\0\0\0latin1\x86R\x86R",
}


@pytest.mark.parametrize("name", TORCH)
def test_what_torch_writes(tmp_path, plain, name):
    path = write_with(tmp_path / "x.pt", b"\x80\2" + TORCH[name] + b".")
    same(llama2c.read_pt(path), plain)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numbers_of_numpy_are_numbers(tmp_path, plain, protocol):
    for value in (np.int64(-5), np.uint8(5), np.float32(0.5), np.float64(1e300), np.bool_(True)):
        found = pickle_data.load(pickle.dumps(value, protocol))
        assert found == value and type(found) is type(value.item())
    assert pickle_data.load(pickle.dumps(np.dtype(">i4").type(0), protocol)) == 0


@pytest.mark.parametrize("protocol", (2, 4, 5))
def test_a_trainer_may_count_in_numpy(tmp_path, plain, protocol):
    arguments = {n: np.int64(v) for n, v in ARGUMENTS.items()} | {"norm_eps": np.float64(1e-5)}
    extra = pickle.dumps(arguments, protocol)
    path = write_with(tmp_path / "x.pt", extra)
    file = TorchFile(path)
    assert file.content["extra"] == ARGUMENTS | {"norm_eps": 1e-5}
    assert {type(value) for value in file.content["extra"].values()} == {int, float}


def test_nothing_that_is_named_is_imported_or_run(tmp_path, plain, monkeypatch):
    """A module whose import leaves a file, and a class whose making does."""
    module = tmp_path / "canary_module.py"
    module.write_text(
        "open('imported', 'w').close()\n"
        "class Canary:\n"
        "    def __new__(cls, *_):\n"
        "        open('made', 'w').close()\n"
        "        return object.__new__(cls)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    named = b"ccanary_module\nCanary\n"
    for i, extra in enumerate((named, named + b")R", named + b")\x81}b", named + b"K\1\x85R}b")):
        assert isinstance(
            pickle_data.load(b"\x80\2" + extra + b"."), Placeholder | pickle_data.Name
        )
        same(llama2c.read_pt(write_with(tmp_path / f"{i}.pt", b"\x80\2" + extra + b".")), plain)
    assert "canary_module" not in sys.modules
    assert not {"imported", "made"} & set(os.listdir(tmp_path))
    pickle.loads(b"\x80\2" + named + b")R.")  # else the above would prove nothing
    assert {"imported", "made"} <= set(os.listdir(tmp_path))
    sys.modules.pop("canary_module")


def test_reading_a_file_imports_none_of_what_it_names(tmp_path):
    """In a process that has not imported those modules for other reasons."""
    names = ["decimal", "fractions", "uuid", "argparse", "my.trainer", "torch"]
    extra = b"\x80\2(" + b"".join(b"c%s\nX\n)\x81" % name.encode() for name in names) + b"t."
    path = write_with(tmp_path / "x.pt", extra)
    code = (
        "import sys\nfrom llama2np.formats import llama2c\nbefore = {*sys.modules}\n"
        f"llama2c.read_pt({str(path)!r})\nprint(sorted({{*sys.modules}} - before))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = json.loads(found.stdout.replace("'", '"'))
    assert not {name.partition(".")[0] for name in imported} & {*names, "my"}


WHOLE = b"\x80\2cmy.net\nLlama\n)\x81}X\1\0\0\0aK\1sb."


def test_a_whole_object_is_named(tmp_path, capsys):
    """torch.save(model) instead of model.state_dict(); arguments in a class of one's own."""
    write_archive(tmp_path / "x.pt", {"data.pkl": WHOLE})
    assert main(["inspect", str(tmp_path / "x.pt")]) == 1
    assert "expected a dictionary of tensors, found a my.net.Llama" in capsys.readouterr().err
    content = b"}(X\5\0\0\0model}X\n\0\0\0model_args"
    write_archive(tmp_path / "x.pt", {"data.pkl": b"\x80\2" + content + WHOLE[2:-1] + b"u."})
    with pytest.raises(
        CheckpointError, match="model_args is a my.net.Llama, expected a dictionary"
    ):
        llama2c.read_pt(tmp_path / "x.pt")


def test_a_tensor_that_is_none_of_ours_is_not_left_out_in_silence(tmp_path):
    """A bias that is quantized, say: without it, it would be another network."""
    bias = b"\x80\2}X\4\0\0\0biasctorch._utils\n_rebuild_qtensor\n)Rs."
    write_archive(tmp_path / "x.pt", {"data.pkl": bias})
    with pytest.raises(CheckpointError, match="bias is a torch._utils._rebuild_qtensor, expected"):
        TorchFile(tmp_path / "x.pt").tensors()
    own = b"\x80\2}X\6\0\0\0a.biascmy\nInt4\n)\x81s."
    write_archive(tmp_path / "x.pt", {"data.pkl": own})
    with pytest.raises(CheckpointError, match="a.bias is a my.Int4, expected a plain tensor"):
        TorchFile(tmp_path / "x.pt").tensors()


def test_a_tensor_with_attributes_is_a_tensor(tmp_path):
    tensor = TORCH["tensor with attributes"]
    data = {"data.pkl": b"\x80\2}X\1\0\0\0x" + tensor + b"s.", "data/0": b"\0\0\x80\x3f"}
    write_archive(tmp_path / "x.pt", data)
    (found,) = TorchFile(tmp_path / "x.pt").tensors().values()
    assert found.read(0, 1).tolist() == [1.0]


def test_a_long_string_is_not_encoded_again_and_again():
    """NumPy's scalars are strings of bytes; one of a megabyte, encoded a thousand times."""
    encode = b"c_codecs\nencode\nh\0\x85R"
    data = b"\x80\2X\x00\x00\x10\x00" + b"x" * 2**20 + b"q\0(" + encode * 1000 + b"t."
    found = pickle_data.load(data)
    assert len(found) == 1000 and isinstance(found[0], Placeholder)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of itertools
def test_the_classes_here_are_those_that_pickle_makes():
    """Else the extras above would be others than they look."""
    assert importlib.import_module(Made.__module__).make is make
    for values in EXTRAS.values():
        pickle.loads(pickle.dumps(values, 4))
