"""Quantization of weights: the arithmetic of llama2.c's exporter."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llama2np.formats import llama2c
from llama2np.formats.checkpoint import CheckpointError, Header
from llama2np.formats.q80 import group_size_for, quantize
from llama2np.formats.write import write_bin
from llama2np.model.config import Config


def naive_quantize(w, group):
    """Loops, in the words of the format."""
    q, scales = [], []
    for start in range(0, w.size, group):
        values = w.ravel()[start : start + group]
        scale = np.float32(max(abs(value) for value in values)) / np.float32(127)
        scales.append(scale)
        q += [round(float(value / scale)) if scale else 0 for value in values]
    return q, scales


@given(
    arrays(np.float32, (3, 16), elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False)),
    st.sampled_from((1, 2, 4, 16)),
)
def test_quantize(w, group):
    w[np.abs(w) < 1e-30] = 0
    q, scales, error = quantize(w, group)
    expected_q, expected_scales = naive_quantize(w, group)
    assert q.ravel().tolist() == expected_q and scales.ravel().tolist() == expected_scales
    back = (q.reshape(-1, group) * scales.reshape(-1, 1)).reshape(w.shape)
    assert error.largest == np.abs(back - w).max() and error.count == w.size
    assert error.largest <= scales.max() * 0.501
    assert error.mean == pytest.approx(np.abs(back - w).mean(dtype=np.float64), rel=1e-5, abs=1e-12)


def test_quantize_at_the_edges():
    w = np.zeros((3, 4), np.float32)
    w[1] = [127, 0.5, 1.5, -2.5]  # ties go to the even neighbour
    w[2] = [2.5e-43, -2.5e-43, 1e-45, 0]  # the scale is one of float32's coarsest numbers
    q, scales, _ = quantize(w, 4)
    assert q[0].tolist() == [0] * 4 and scales[0] == 0
    assert q[1].tolist() == [127, 0, 2, -2] and scales[1] == 1
    assert q[2].tolist() == [127, -127, 1, 0]
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="nan or inf"):
            quantize(np.full((1, 4), bad, np.float32), 4)


@given(st.integers(1, 300), st.integers(1, 300))
def test_group_size(half_dim, hidden_dim):
    config = Config(2 * half_dim, hidden_dim, 1, 1, 1, 9, 5)
    group = group_size_for(config)
    assert config.dim % group == config.hidden_dim % group == 0 and 64 % group == 0
    assert group == 64 or config.dim % (2 * group) or config.hidden_dim % (2 * group)


def test_weights_that_are_no_numbers(tmp_path, write):
    path = write("nan.bin", Header(1, Config(8, 8, 1, 2, 2, 9, 5), True))
    data = bytearray(path.read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"nan.bin: layers.0.w_up holds nan or inf"):
        write_bin(llama2c.read_bin(path), tmp_path / "x.bin", 2)
    assert os.listdir(tmp_path) == ["nan.bin"]
