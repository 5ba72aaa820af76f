"""The .bin formats: literal bytes, round trips, and every way a file can be wrong."""

import struct
import tracemalloc

import numpy as np
import pytest
from conftest import TINY, examples, random_tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2np.formats import checkpoint
from llama2np.formats.checkpoint import CheckpointError, Header
from llama2np.model.config import Config

HEADERS = [
    Header(version, TINY, tied, 16 if version == 2 else 0)
    for version in (0, 1, 2)
    for tied in (True, False)
]
SEVEN = (48, 80, 3, 6, 2, 300, 96)  # TINY, as a header lists it


def test_header_bytes():
    """Built by hand from the formats' description."""
    tied, untied = (Header(0, TINY, tied).to_bytes() for tied in (True, False))
    assert tied == struct.pack("<7i", *SEVEN)
    assert untied == struct.pack("<7i", *SEVEN[:5], -300, 96)
    v1 = Header(1, TINY, True).to_bytes()
    assert v1 == (b"24ka" + struct.pack("<8i", 1, *SEVEN) + b"\x01").ljust(256, b"\0")
    v2 = Header(2, TINY, False, 16).to_bytes()
    assert v2 == (b"24ka" + struct.pack("<8i", 2, *SEVEN) + b"\0\x10\0\0\0").ljust(256, b"\0")


def test_size_of_stories15m():
    """The published file's size, from the formula."""
    config = Config(288, 768, 6, 6, 6, 32000, 256)
    assert Header(0, config, True).file_size == 60_816_028


@pytest.mark.parametrize("header", HEADERS, ids=str)
def test_round_trip(write, header):
    path = write("tiny.bin", header)
    assert path.stat().st_size == header.file_size
    found, tensors = checkpoint.open_tensors(path)
    assert found == header
    for name, expected in random_tensors(header).items():
        if name != "rope_tables":
            np.testing.assert_equal(tensors[name], expected)


@pytest.mark.parametrize("header", HEADERS, ids=str)
def test_weights_are_views_of_the_file(write, header):
    config, weights = checkpoint.load(write("tiny.bin", header))
    assert config == TINY and len(weights.layers) == 3
    assert (weights.classifier is weights.embedding) == header.tied
    layer, tensors = weights.layers[2], random_tensors(header)
    np.testing.assert_array_equal(layer.ffn_norm, tensors["ffn_norm"][2])
    if header.version == 2:
        np.testing.assert_array_equal(layer.w_down.q, tensors["w_down"][0][2])
        np.testing.assert_array_equal(layer.w_down.scales, tensors["w_down"][1][2])
        assert not layer.w_down.q.flags.owndata
    else:
        np.testing.assert_array_equal(layer.w_down.w, tensors["w_down"][2])
        assert not layer.w_down.w.flags.owndata


def test_versions_hold_the_same_network(write, reference):
    """stories260K.bin rewritten as version 1 is the same network."""
    header, tensors = checkpoint.open_tensors(reference / "stories260K/stories260K.bin")
    path = write("v1.bin", Header(1, header.config, header.tied))
    checkpoint.save(path, Header(1, header.config, header.tied), tensors)
    _, again = checkpoint.open_tensors(path)
    assert again.keys() == tensors.keys() - {"rope_tables"}
    for name, tensor in again.items():
        np.testing.assert_array_equal(tensor, tensors[name])


def test_a_28_gb_file_is_mapped_not_read(tmp_path):
    """Sparse, so that it needs no disk: Llama 2 7B in float32."""
    header = Header(1, Config(4096, 11008, 32, 32, 32, 32000, 2048), False)
    path = tmp_path / "7b.bin"
    path.write_bytes(header.to_bytes())
    try:
        with open(path, "r+b") as file:
            file.truncate(header.file_size)
    except OSError as error:
        pytest.skip(f"no sparse files here: {error}")
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF)
    tracemalloc.start()
    try:
        config, weights = checkpoint.load(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    after = resource.getrusage(resource.RUSAGE_SELF)
    faults = after.ru_minflt + after.ru_majflt - before.ru_minflt - before.ru_majflt
    assert faults < 5000  # the file has 6.6 million pages, 13 thousand huge ones
    assert config.dim == 4096 and weights.classifier.w.shape == (32000, 4096)
    assert weights.layers[31].w_down.w[0, 0] == 0


def broken(tmp_path, data):
    path = tmp_path / "broken.bin"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("header", HEADERS[::2], ids=str)
@pytest.mark.parametrize("change", (-1, 1, -1000, 4096))
def test_size_to_the_byte(write, header, change):
    path = write("tiny.bin", header)
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + bytes(change))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    size = header.file_size
    assert f"tiny.bin: needs {size:,} bytes, has {size + change:,}" in str(caught.value)


@pytest.mark.parametrize(
    "data, message",
    (
        (b"", "an empty file"),
        (bytes(10), "the header needs 28 bytes, the file has 10"),
        (b"24ka", "the header needs"),
        (b"24ka2", "the header needs 256 bytes, the file has 5"),
        (b"24ka\xff\xff\xff", "the header needs 256 bytes, the file has 7"),
        (b"24ka" + struct.pack("<8i", 1, *SEVEN), "the header needs 256 bytes, the file has 36"),
        (b"24ka" + struct.pack("<i", 3) + bytes(300), "version 3, expected 0, 1 or 2"),
        (b"24ka" + struct.pack("<i", -1) + bytes(300), "version -1, expected 0, 1 or 2"),
        (b"24ka" + struct.pack("<i", 0) + bytes(300), "version 0, expected 0, 1 or 2"),
        (struct.pack("<7i", 0, *SEVEN[1:]) + bytes(300), "dim=0, expected 1 to"),
        (struct.pack("<7i", -48, *SEVEN[1:]) + bytes(300), "dim=-48, expected 1 to"),
        (struct.pack("<7i", 2**30, *SEVEN[1:]) + bytes(300), "dim=1073741824, expected 1 to"),
        (struct.pack("<7i", 2**26, *SEVEN[1:]) + bytes(300), "does not divide|needs .* bytes"),
        (struct.pack("<7i", *SEVEN[:5], 0, 96) + bytes(300), "vocab_size=0"),
        (struct.pack("<7i", 48, 80, 3, 6, 4, 300, 96) + bytes(300), "n_kv_heads=4 does not"),
        (struct.pack("<7i", 48, 80, 3, 5, 5, 300, 96) + bytes(300), "n_heads=5 does not"),
        (b"Once upon a time, there was a text file of enough bytes.", "not a llama2.c checkpoint"),
    ),
)
def test_what_is_no_checkpoint(tmp_path, data, message):
    path = broken(tmp_path, data)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("group", (0, -16, 7, 32, 64))
def test_group_sizes_that_do_not_divide(tmp_path, group):
    """dim is 48, hidden_dim 80: 16 would do. The message says how to get such a file."""
    header = bytearray(Header(2, TINY, True, 16).to_bytes())
    header[37:41] = struct.pack("<i", group)
    with pytest.raises(CheckpointError, match=f"group size {group} does not .* export it again"):
        checkpoint.load(broken(tmp_path, bytes(header) + bytes(10**6)))


def test_a_folder_and_a_missing_file(tmp_path):
    with pytest.raises(IsADirectoryError):
        checkpoint.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "none.bin")


def test_save_refuses_wrong_shapes(tmp_path):
    header = Header(1, TINY, True)
    tensors = random_tensors(header) | {"wq": np.zeros((3, 48, 47), np.float32)}
    with pytest.raises(ValueError, match="wq"):
        checkpoint.save(tmp_path / "x.bin", header, tensors)


@settings(max_examples=examples(300))
@given(st.binary(max_size=300), st.sampled_from((b"", b"24ka\1\0\0\0", b"24ka\2\0\0\0")))
def test_any_bytes_are_refused_or_read(tmp_path_factory, data, start):
    path = tmp_path_factory.getbasetemp() / "any.bin"
    path.write_bytes(start + data)
    try:
        checkpoint.load(path)
    except CheckpointError as error:
        assert str(path) in str(error)


@settings(max_examples=examples(200))
@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=7, max_size=7), st.integers(0, 2))
def test_any_header_is_refused_or_read(tmp_path_factory, numbers, version):
    """Sizes are computed without overflow, whatever the numbers."""
    start = b"" if version == 0 else b"24ka" + struct.pack("<i", version)
    path = tmp_path_factory.getbasetemp() / "any.bin"
    path.write_bytes((start + struct.pack("<7i", *numbers)).ljust(300, b"\1"))
    with pytest.raises(CheckpointError):
        checkpoint.load(path)


def test_a_bin_that_shrinks_while_it_is_opened(tmp_path, write, monkeypatch):
    path = write("x.bin", Header(1, TINY, True))
    map_file = checkpoint.map_weights

    def shrink(file):
        with open(path, "r+b") as other:
            other.truncate(1000)
        return map_file(file)

    monkeypatch.setattr(checkpoint, "map_weights", shrink)
    with pytest.raises(CheckpointError, match="x.bin: needs .* has 1,000: truncated"):
        checkpoint.load(path)
