"""The functions between two matrices, and their slopes (derivatives), elementwise."""

from __future__ import annotations

import math

import numpy as np


def silu(x: np.ndarray) -> np.ndarray:
    """x / (1 + exp(-x)) (Hendrycks and Gimpel 2016)."""
    out: np.ndarray = np.exp(-x)
    out += 1
    np.divide(x, out, out=out)
    return out


def silu_and_slope(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """silu(x) = x s, and its slope s (1 + x - x s) for s = 1 / (1 + exp(-x))."""
    s = np.exp(-x)
    s += 1
    np.reciprocal(s, out=s)
    value = x * s
    slope = x - value
    slope += 1
    slope *= s
    return value, slope


def gelu(x: np.ndarray, exact: bool) -> np.ndarray:
    """x P(N(0, 1) <= x), exact or with tanh's approximation (Hendrycks and Gimpel 2016)."""
    if exact:
        below = 1 + erf(x * np.float32(0.5**0.5))
    else:
        below = 1 + np.tanh(_inner(x))
    out: np.ndarray = x / 2 * below
    return out


def gelu_and_slope(x: np.ndarray, exact: bool) -> tuple[np.ndarray, np.ndarray]:
    """gelu(x) and its slope.

    Exact: P + x p, with the density p of N(0, 1). With t = tanh(a (x + b x^3)):
    (1 + t) / 2 + x (1 - t^2) a (1 + 3 b x^2) / 2.
    """
    if exact:
        share = (1 + erf(x * np.float32(0.5**0.5))) / 2
        density = np.exp(x * x * np.float32(-0.5)) * np.float32((2 * math.pi) ** -0.5)
        return x * share, share + x * density
    t = np.tanh(_inner(x))
    by_inner = _A + 3 * _A * _B * x * x
    return x / 2 * (1 + t), (1 + t) / 2 + x / 2 * (1 - t * t) * by_inner


_A, _B = np.float32((2 / math.pi) ** 0.5), np.float32(0.044715)


def _inner(x: np.ndarray) -> np.ndarray:
    inner: np.ndarray = _A * (x + _B * (x * x * x))
    return inner


# Abramowitz and Stegun (1964), 7.1.26: erf(x) = 1 - (a1 t + ... + a5 t^5) exp(-x^2) for x >= 0 and
# t = 1 / (1 + p x), to 1.5e-7, which is float32's last bit.
_P, _A5 = 0.3275911, (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def erf(x: np.ndarray) -> np.ndarray:
    """The error function, to 5e-7 for float32; for other types it is exact, and slow."""
    if x.dtype != np.float32:
        exact: np.ndarray = np.vectorize(math.erf, otypes=[x.dtype])(x)
        return exact
    size = np.abs(x)
    t = 1 / (1 + np.float32(_P) * size)
    series = np.zeros_like(t)
    for a in _A5:
        series = (series + np.float32(a)) * t
    found: np.ndarray = np.copysign(1 - series * np.exp(-size * size), x)
    return found
