"""What .bin headers say beyond llama2.c's, where the C programs do not look."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama2np.cli.export import main as export
from llama2np.formats.checkpoint import CheckpointError, Header, read_header
from llama2np.model.config import Config


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
