"""Quantize to Q4_K and Q6_K: blocks of 256 values, whose parts have scales of their own.

The scale of a part is searched: of some twenty candidates the one with the smallest weighted error
is taken. The rules, and the order of the float32 sums, are those of llama.cpp's reference functions
(quantize_row_q4_K_ref and quantize_row_q6_K_ref in ggml-quants.c).
"""

from __future__ import annotations

import numpy as np

_TINY = np.float32(1e-15)  # smaller values are zero


def q6_k(blocks: np.ndarray) -> np.ndarray:
    """(blocks, 256) float32 -> (blocks, 210) uint8."""
    found = _symmetric(np.ascontiguousarray(blocks.reshape(-1, 16).T), 32)
    scales, integers = (each.T.reshape(len(blocks), 16, -1) for each in found)
    at = np.abs(scales).argmax(axis=1)[:, None]
    largest = np.take_along_axis(scales, at, axis=1)[..., 0]  # (blocks, 1)
    zero = np.abs(largest) < _TINY
    inverse = np.float32(-128) / np.where(zero, np.float32(1), largest)
    d = _half(1 / inverse)
    steps = np.minimum(np.rint(inverse * scales[..., 0]), 127).astype(np.int8)
    step = d.astype(np.float32) * steps  # (blocks, 16)
    quotients = blocks.reshape(scales.shape[0], 16, 16) / np.where(step == 0, 1, step)[..., None]
    rounded = np.rint(quotients).clip(-32, 31).astype(np.int8)
    chosen = np.where((step == 0)[..., None], integers, rounded)
    levels = (chosen.reshape(len(blocks), 2, 128) + np.int8(32)).astype(np.uint8)
    low, high = (levels & 15).reshape(-1, 2, 2, 64), (levels >> 4).reshape(-1, 2, 4, 32)
    nibbles = low[:, :, 0] | low[:, :, 1] << 4
    upper = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    count = len(blocks)
    packed = [nibbles.reshape(count, -1), upper.reshape(count, -1), steps.view(np.uint8)]
    made = np.concatenate([*packed, d.view(np.uint8)], axis=-1)
    made[zero[:, 0]] = 0
    return made


def q4_k(blocks: np.ndarray) -> np.ndarray:
    """(blocks, 256) float32 -> (blocks, 144) uint8."""
    parts, shape = blocks.reshape(-1, 32), (len(blocks), 8)
    found = _from_smallest(np.ascontiguousarray(parts.T), 15)
    scales, offsets, integers = found[0].reshape(shape), 0 - found[1].reshape(shape), found[2].T
    sixths = []
    for values in (scales, offsets):
        top = values.max(axis=1, keepdims=True)
        inverse = np.where(top > 0, np.float32(63) / np.where(top > 0, top, 1), 0)
        steps = np.minimum(np.rint(inverse.astype(np.float32) * values), 63).astype(np.uint8)
        sixths.append((_half(top / np.float32(63)), steps))
    (d, scale_steps), (d_offsets, offset_steps) = sixths
    step = (d.astype(np.float32) * scale_steps).reshape(-1, 1)
    offset = (d_offsets.astype(np.float32) * offset_steps).reshape(-1, 1)
    rounded = np.rint((parts + offset) / np.where(step == 0, 1, step)).clip(0, 15)
    levels = np.where(step == 0, integers, rounded).astype(np.uint8).reshape(-1, 4, 2, 32)
    nibbles = (levels[:, :, 0] | levels[:, :, 1] << 4).reshape(len(blocks), -1)
    scales_and_offsets = _six_bits(scale_steps, offset_steps)
    halves = [d.view(np.uint8), d_offsets.view(np.uint8)]
    return np.concatenate([*halves, scales_and_offsets, nibbles], axis=-1)


def _six_bits(scales: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Two times 8 numbers of 6 bits in 12 bytes, as gguf_blocks._scales_and_offsets reads them."""
    a = scales[:, :4] | scales[:, 4:] >> 4 << 6
    b = offsets[:, :4] | offsets[:, 4:] >> 4 << 6
    c = scales[:, 4:] & 15 | (offsets[:, 4:] & 15) << 4
    return np.concatenate([a, b, c], axis=-1)


def _symmetric(parts: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """For parts (values, n): scales (1, n) and integers -top ... top - 1 (values, n) whose products
    are near them. An error counts with the square of the value.
    """
    at = np.abs(parts).argmax(axis=0)[None]
    largest = np.take_along_axis(parts, at, axis=0)
    zero = np.abs(largest) < _TINY
    largest = np.where(zero, np.float32(1), largest)
    weights = parts * parts
    scale = best = integers = np.zeros(1, np.float32)
    for i in (0, *range(-9, 0), *range(1, 10)):
        inverse = -(np.float32(top) + np.float32(0.1) * np.float32(i)) / largest
        trial = np.rint(inverse * parts).clip(-top, top - 1)
        weighted = weights * trial
        products, squares = _sum(weights * parts * trial), _sum(weighted * trial)
        fitted = products / np.where(squares > 0, squares, 1)
        if i == 0:
            scale, best, integers = np.where(squares > 0, fitted, 0), fitted * products, trial
            continue
        better = (squares > 0) & (products * products > best * squares)
        scale = np.where(better, fitted, scale)
        best = np.where(better, fitted * products, best)
        integers = np.where(better, trial, integers)
    scale, integers = np.where(zero, 0, scale), np.where(zero, -top, integers)
    return scale.astype(np.float32), integers.astype(np.int8)


def _from_smallest(parts: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For parts (values, n): scales (1, n), smallest values (1, n), at most 0, and integers
    0 ... top (values, n).

    scale * integer + smallest is near the part. An error counts with the size of the value.
    """
    mean = np.sqrt(_sum(parts * parts) / np.float32(len(parts)))
    weights = mean + np.abs(parts)
    total, weighted = _sum(weights), _sum(weights * parts)
    smallest = np.minimum(parts.min(axis=0, keepdims=True), 0)
    largest = parts.max(axis=0, keepdims=True)
    flat = largest == smallest
    largest = np.where(flat, smallest + 1, largest)
    inverse = np.float32(top) / (largest - smallest)
    integers = np.rint(inverse * (parts - smallest)).clip(0, top)
    scale, low = 1 / inverse, smallest
    best = _sum(weights * np.square(scale * integers + low - parts))
    for i in range(21):  # from the best one so far
        inverse = (np.float32(-1) + np.float32(0.1) * np.float32(i) + np.float32(top)) / (
            largest - low
        )
        trial = np.rint(inverse * (parts - low)).clip(0, top)
        counted = weights * trial
        ones, squares, products = _sum(counted), _sum(counted * trial), _sum(counted * parts)
        divisor = total * squares - ones * ones
        usable = divisor > 0
        divisor = np.where(usable, divisor, 1)
        its_scale = (total * products - weighted * ones) / divisor
        its_low = (squares * weighted - ones * products) / divisor
        its_scale = np.where(its_low > 0, products / np.where(squares > 0, squares, 1), its_scale)
        its_low = np.minimum(its_low, 0)
        error = _sum(weights * np.square(its_scale * trial + its_low - parts))
        better = usable & (error < best)
        scale, low = np.where(better, its_scale, scale), np.where(better, its_low, low)
        best, integers = np.where(better, error, best), np.where(better, trial, integers)
    return np.where(flat, 0, scale), np.where(flat, smallest, low), np.where(flat, 0, integers)


def _sum(values: np.ndarray) -> np.ndarray:
    """The sums of the columns, (1, n), each from top to bottom."""
    return np.add.reduce(values, axis=0, keepdims=True)


def _half(values: np.ndarray) -> np.ndarray:
    return values.astype("<f2")
