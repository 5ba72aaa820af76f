"""What fuzzing and reading with evil eyes found in the file readers; each was a fault once."""

import io
import json
import pickle
import struct
import tracemalloc
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY, parameters
from safetensors.numpy import save_file

from llama2np.cli import main
from llama2np.formats import checkpoint, huggingface, llama2c, meta, pickle_data, safetensors
from llama2np.formats.checkpoint import CheckpointError, Header
from llama2np.formats.inspection import describe
from llama2np.formats.pickle_data import PickleError, Placeholder
from llama2np.formats.source import Source
from llama2np.formats.torch_zip import TorchFile
from llama2np.formats.write import write_bin, write_huggingface
from llama2np.model.config import Config
from llama2np.model.transformer import State, Transformer
from llama2np.output import brief, printable
from llama2np.text.tokenizer import TokenizerError
from tools.fuzz import memory_bound
from tools.hostile import SMALL, valid, write_case
from tools.torch_files import Tensor, pickled, write_archive

FLOATS = {"data/0": bytes(96), "byteorder": b"little"}
START = b"\x80\2"


def archive(folder, pickle, files=FLOATS):
    write_archive(folder / "x.pt", {"data.pkl": pickle} | files)
    return folder / "x.pt"


# Pickles that are bombs


KEYS = {
    "deep": b")" + b"\x85" * 200_000,  # hash() is C code that ignores the depth: a crash
    "with-list": b"]\x85",  # ([],), of which hash() is a TypeError
}
HASHED = {
    "setitem": b"}%bK\1s.",
    "setitems": b"}(%bK\1u.",
    "dict": b"(%bK\1d.",
    "additems": b"\x8f(%b\x90.",
    "frozenset": b"(%b\x91.",
    "dtype": b"cnumpy\ndtype\n%b\x85R.",
    "encode": b"c_codecs\nencode\n%b\x85R.",
}
OFTEN = [("setitem", "deep"), *((place, "with-list") for place in HASHED)]
CASES = [(place, key) for place in HASHED for key in KEYS]


@pytest.mark.parametrize("case", parameters(CASES, OFTEN), ids="-".join)
def test_tuples_are_never_hashed(case):
    """What has such a key is left out."""
    place, key = case
    found = pickle_data.load(START + HASHED[place] % KEYS[key])
    assert found == {} or isinstance(found, Placeholder)


def test_a_name_is_a_string():
    with pytest.raises(PickleError, match="name that is not a string"):
        pickle_data.load(START + KEYS["with-list"] + b"X\1\0\0\0x\x93.")


def test_keys_of_one_hash(tmp_path):
    """A dictionary of n of them takes n² steps: 8 MB were half an hour."""
    same = [i * (2**61 - 1) for i in range(1, 40)]
    assert {*map(hash, same)} == {0}
    for keys in (same, [float(i) for i in same], [-1], [2**32], [b"x"], [None]):
        assert pickle_data.load(pickle.dumps(dict.fromkeys(keys))) == {}  # left out
    assert pickle_data.load(pickle.dumps({(1, 2): 3, "a": 4, 0.5: 6})) == {"a": 4}
    with pytest.raises(PickleError, match="remembers more than"):
        pickle_data.load(START + b"p%d\n." % (2**61 - 1))
    optimizer = {"state": {0: 1, 1: 2}, "groups": [0, 1]}
    assert pickle_data.load(pickle.dumps(optimizer)) == optimizer


def test_a_pickle_that_remembers_the_same_for_ever(monkeypatch):
    monkeypatch.setattr(pickle_data, "_MAX_REMEMBERED", 20_000)
    data = START + b"N" + b"\x94" * 30_000 + b"."
    tracemalloc.start()
    try:
        with pytest.raises(PickleError, match="remembers more than 20,000"):
            pickle_data.load(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < memory_bound(len(data))


def test_a_copied_dictionary_is_no_bomb():
    """800 kB that were 2.6 GB: OrderedDict(large), a thousand times."""
    large = b"}(" + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(50_000)) + b"u"
    copies = b"\x85q\0" + b"ccollections\nOrderedDict\nq\1" + b"h\1h\0R" * 1000
    with pytest.raises(PickleError, match="OrderedDict with other arguments"):
        pickle_data.load(START + large + copies + b".")


LAUGHS = b"K\1" + b"q\0h\0\x86" * 100  # (1, 1), twice, twice ... 2^100 ones


def test_what_is_shared_is_not_spelled_out(tmp_path):
    """In an error text the laughing would last for ever."""
    arguments = b"X\5\0\0\0model}X\n\0\0\0model_args}X\3\0\0\0dim" + LAUGHS + b"s"
    content = START + b"}(" + arguments + b"u."
    weights = pickled({"layers.0.w_gate": Tensor("0", "float32", (4, 6))})[2:-1]
    content = content.replace(b"model}", b"model" + weights, 1)
    with pytest.raises(CheckpointError, match=r"model_args has .*, expected a number"):
        llama2c.read_pt(archive(tmp_path, content))
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\n"
    tensor += b"X\1\0\0\x000X\3\0\0\0cpuK\1tQK\0" + LAUGHS + b"\x85q\1h\1\x89NtR."
    with pytest.raises(PickleError, match="a tensor claims offset 0, shape "):
        pickle_data.load(START + tensor)


def test_a_tensor_of_many_dimensions(tmp_path):
    content = pickled({"x": Tensor("0", "float32", (1,) * 65)})
    with pytest.raises(CheckpointError, match="claims 65 dimensions"):
        TorchFile(archive(tmp_path, content)).tensors()


@pytest.mark.parametrize(
    "value, said",
    ((10**5000, "int"), ([[[[[[[[1]]]]]]]], "[[[[[[[...]]]]]]]"), ("x" * 99, "'xxxxxxxxxxxx...")),
    ids=("int", "list", "str"),
)
def test_brief(value, said):
    assert brief(value).startswith(said) and len(brief(value)) <= 60


# Tensors of nothing, and of the same values again and again


@pytest.mark.parametrize("shape", ((2**47, 0), (0, 2**47)), ids=str)
def test_rows_of_nothing_are_not_counted(tmp_path, shape):
    content = pickled({"x": Tensor("0", "float32", shape, (0, 0))})
    (tensor,) = TorchFile(archive(tmp_path, content)).tensors().values()
    assert list(tensor.blocks()) == []
    assert list(safetensors.read(empty_safetensors(tmp_path, shape))["x"].blocks()) == []


def empty_safetensors(folder, shape):
    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    (folder / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return folder / "x.safetensors"


@pytest.mark.parametrize(
    "shape", ((0, 2**47, 2**47), (2**31, 2**30, 0), (0,) * 70, (2**47,) * 10**5), ids=len
)
def test_shapes_that_numpy_has_not(tmp_path, shape):
    with pytest.raises(CheckpointError, match=r"x: claims [\d,]+ dimensions"):
        safetensors.read(empty_safetensors(tmp_path, shape))
    if len(shape) < 33:
        content = pickled({"x": Tensor("0", "float32", shape, (0,) * len(shape))})
        with pytest.raises(CheckpointError, match="x: claims 3 dimensions"):
            TorchFile(archive(tmp_path, content)).tensors()


def test_one_storage_for_everything(tmp_path):
    """Reading takes the time of what the tensors claim, not of the file's size."""
    files = {"data/0": bytes(2**16)}
    content = {f"x{i}": Tensor("0", "float32", (2**14,)) for i in range(99)}
    path = archive(tmp_path, pickled(content), files)
    with pytest.raises(CheckpointError, match=r"tensors claim 6,488,064 bytes, the file has"):
        TorchFile(path).tensors()
    shared = {name: content[name] for name in ("x1", "x2", "x3")}  # tied weights are legitimate
    assert len(TorchFile(archive(tmp_path, pickled(shared), files)).tensors()) == 3


def test_a_file_before_the_beginning_of_the_archive(tmp_path):
    """The end of the archive claims a wrong offset of its directory."""
    write_archive(tmp_path / "x.pt", {"data.pkl": pickled({})} | FLOATS)
    data = bytearray((tmp_path / "x.pt").read_bytes())
    at = data.rindex(b"PK\6\6") + 48  # zip64: where the directory begins
    place = struct.unpack_from("<Q", data, at)[0]
    data[at : at + 8] = struct.pack("<Q", place + 500)
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(CheckpointError):
        TorchFile(tmp_path / "x.pt")


# Lines for a terminal

EVIL = "\x1b]0;owned\x07\x1b[2J\ud800\u202e"


def test_a_name_does_not_drive_the_terminal(tmp_path, capsys):
    name = EVIL.replace("\ud800", "")  # half a character is refused
    header = {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    header = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert r"\x1b]0;owned\x07\x1b[2J\u202e  (1,) float32" in said
    assert said.replace("\n", "").isprintable()
    header = header.replace(b"F32", EVIL.encode(errors="replace").replace(b"\x1b", b"\\u001b"))
    path.write_bytes(len(header).to_bytes(8, "little") + header.replace(b"\7", b"") + bytes(4))
    assert main(["inspect", str(path)]) == 1
    assert capsys.readouterr().err.rstrip("\n").isprintable()


@pytest.mark.parametrize("error", (CheckpointError, TokenizerError))
def test_errors_are_one_printable_line(error):
    assert str(error(f"a\n{EVIL}é日")) == r"a\n\x1b]0;owned\x07\x1b[2J\ud800\u202eé日"
    assert len(str(error("x" * 10**6))) < 2500


def test_printable_leaves_good_text():
    assert printable("stories15M.bin: 日本 é") == "stories15M.bin: 日本 é"


# Numbers that no file of ours can hold


def with_positions(tmp_path, seq_len):
    case = dict(valid("hf")[0])
    config = json.loads(case["config.json"]) | {"max_position_embeddings": seq_len}
    write_case(case | {"config.json": json.dumps(config).encode()}, tmp_path)
    return tmp_path


@pytest.mark.parametrize("seq_len", (2**27, 2**31, 2**48))
def test_more_positions_than_a_header_holds(tmp_path, seq_len):
    source = huggingface.read(with_positions(tmp_path, seq_len))
    with pytest.raises(CheckpointError, match=f"seq_len={seq_len:,}, a .bin holds .* --seq-len"):
        write_bin(source, tmp_path / "x.bin", 1)
    assert not (tmp_path / "x.bin").exists()
    write_bin(source.with_seq_len(2**27 - 1), tmp_path / "x.bin", 1)
    assert checkpoint.read_header(tmp_path / "x.bin").config.seq_len == 2**27 - 1


def test_tables_of_many_positions_take_no_memory(tmp_path):
    """Version 0 has a row for each, and a config may claim any number of them."""
    source: Source = huggingface.read(with_positions(tmp_path, 2**19))
    tracemalloc.start()
    try:
        write_bin(source, tmp_path / "x.bin", 0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "x.bin").stat().st_size > 8e6 and peak < 2e6


def test_a_config_of_huge_heads(tmp_path):
    """The order of the rows in a head was made before the matrix was looked at: gigabytes."""
    case = dict(valid("hf")[0])
    config = json.loads(case["config.json"]) | {"hidden_size": 2**40, "head_dim": 2**39}
    write_case(case | {"config.json": json.dumps(config).encode()}, tmp_path)
    with pytest.raises(CheckpointError, match="has shape"):
        huggingface.read(tmp_path)


def test_a_state_takes_no_memory_for_positions_that_are_only_claimed(tmp_path):
    tracemalloc.start()
    try:
        State(Config(8, 12, 1, 2, 1, 20, 2**27 - 1))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**16


def test_a_saved_state_is_no_zip_bomb(tmp_path):
    config = Config(8, 12, 1, 2, 1, 20, 2**20)
    state = State(config)
    state.save(tmp_path / "x.npz")
    arrays = dict(np.load(tmp_path / "x.npz"))
    assert State.load(tmp_path / "x.npz", config).pos == 0
    np.savez_compressed(tmp_path / "x.npz", **arrays | {"keys": np.zeros(10**6, np.float32)})
    assert (tmp_path / "x.npz").stat().st_size < 10**4
    with pytest.raises(ValueError, match="x.npz: not a saved state, .* is compressed"):
        State.load(tmp_path / "x.npz", config)


def test_a_saved_state_that_claims_room(tmp_path):
    """NumPy's reader would take 8 GB for this file of 2 kB."""
    config = Config(8, 12, 1, 2, 1, 20, 2**20)
    State(config).save(tmp_path / "x.npz")
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    claim = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (2**31,)}
    np.lib.format.write_array_header_1_0(claim, header)
    members["keys.npy"] = claim.getvalue()
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"keys has 0 bytes for float32 \(2147483648,\)"):
            State.load(tmp_path / "x.npz", config)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_a_shard_with_an_endless_name(tmp_path):
    case = dict(valid("hf")[1])
    index = {"weight_map": {"model.norm.weight": "x" * 5000}}
    write_case(case | {"model.safetensors.index.json": json.dumps(index).encode()}, tmp_path)
    with pytest.raises(CheckpointError, match="expected a file beside it") as caught:
        huggingface.read(tmp_path)
    assert len(str(caught.value)) < 500


def test_the_small_cases_are_what_they_say(tmp_path):
    """Else fuzzing would begin from files that nobody reads."""
    write_case(valid("hf")[0], tmp_path)
    assert huggingface.read(tmp_path).config == replace(SMALL, rope_halves=1)
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "y.safetensors")
    assert safetensors.read(tmp_path / "y.safetensors")["x"].shape == (3,)


@pytest.mark.parametrize("number", ("01", "1" * 5000))
def test_numbers_of_layers_that_are_none(tmp_path, number):
    """layers.01 replaced layers.1; Python spells no number of 5000 digits."""
    tensors = {f"layers.{n}.attention.wq.weight": None for n in ("1", number)}
    assert list(meta.our_names(tensors)) == ["layers.1.wq", f"layers.{number}.attention.wq.weight"]
    with pytest.raises(
        CheckpointError, match="layers.1.attention.wq.weight is a second tensor for layers.1.wq"
    ):
        meta.our_names({"layers.1.wq": None} | tensors)


# Numbers that NumPy warns of: on a terminal that is a line nobody asked for


@pytest.mark.compiled
def test_damaged_weights_are_told_by_us_alone(tmp_path, write):
    """Warnings are errors in these tests."""
    header = Header(1, TINY, True)
    path = write("x.bin", header)
    data = bytearray(path.read_bytes())
    for value in (np.float32(3e38).tobytes(), b"\1\0\x80\x7f"):  # huge; a signalling nan
        data[-64:] = value * 16
        path.write_bytes(data)
        model = Transformer(*checkpoint.load(path))
        model.forward([1, 2, 3, 4], State(TINY))
        source = llama2c.read_bin(path)
        write_huggingface(source, tmp_path / "hf", "float32")
        assert len(list(describe(path, path))) > 10
        try:
            write_bin(source, tmp_path / "y.bin", 2)
        except CheckpointError as error:
            assert "nan or inf" in str(error)
