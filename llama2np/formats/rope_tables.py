"""The cos and sin tables of version 0, bit for bit as llama2.c's exporter writes them.

Early versions of run.c, and programs derived from them, read these tables; today's run.c and
llama2np compute the angles. The exporter uses torch, whose float32 sine is not the nearest float32
for one angle in twenty: it is a polynomial for half a period, in float64, rounded at the end. The
polynomial and the two parts of pi are from Intel's vector library, svml_z0_sin_s_ha
(github.com/numpy/SVML).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from llama2np.model.config import Config

_PI = (
    3.1415926535846666,
    5.126688303189038e-12,
)  # in two parts, so that n times each part is exact
# sin x = x + x³ (a + x² (b + x² (c + x² d))); the coefficients from d to a
_SINE = (2.605780638722852e-06, -0.00019809602902257352, 0.00833306624608569, -0.1666665955042783)

_BLOCK = 2**14  # values in one block: a source may claim any number of positions


def rope_tables(config: Config) -> Iterator[np.ndarray]:
    """Yield cos, then sin, of position × frequency in blocks (positions, head_dim / 2) float32."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    powers = np.power(10000.0, exponents.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1) / powers
    step = max(_BLOCK // len(frequencies), 1)
    for shift in (0.5, 0.0):  # cos x = sin(x + π/2)
        for start in range(0, config.seq_len, step):
            end = min(start + step, config.seq_len)
            positions = np.arange(start, end, dtype=np.float32)
            angles = np.outer(positions, frequencies).astype(np.float64)
            half_turns = np.rint(angles / np.pi + shift)
            yield _sine(angles, half_turns, half_turns - shift)


def _sine(angles: np.ndarray, half_turns: np.ndarray, turned: np.ndarray) -> np.ndarray:
    """sin(angles - turned π) in float32, with its sign changed for odd half turns."""
    x = angles - turned * _PI[0] - turned * _PI[1]
    square = x * x
    value = np.full_like(x, _SINE[0])
    for factor in _SINE[1:]:
        value = value * square + factor
    sine = (x + x * (value * square)).astype(np.float32)
    return np.where(half_turns % 2 == 1, -sine, sine)
