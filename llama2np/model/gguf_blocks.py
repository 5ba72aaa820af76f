"""Matrices in the number formats of GGUF, as they are stored in the file.

A row is a sequence of blocks. A block has some values (32 or 256) as small integers, with one or
more scales before or after them. Only the rows that the caller requests are expanded here;
the engines multiply with the blocks themselves.

Each format is a function from the bytes of blocks to their values, in the arithmetic of the package
`gguf` (its quants.py, and ggml-quants.c, are the authority): the values are the same to the last
bit. The comment at a function gives the fields of a block in their order, b bytes each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Format:
    """A number format: a block of `nbytes` bytes holds `values` values.

    `number` is its number in a GGUF file (ggml_type). `dequantize` makes (blocks, values) float32
    from (blocks, nbytes) uint8.
    """

    name: str
    number: int
    values: int
    nbytes: int
    dequantize: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Blocks:
    """A matrix (d, n) in blocks: data (d, bytes of a row) uint8, in the format FORMATS[kind].

    More leading axes are allowed: stacked matrices, whose slices `matrix[i]` are views.
    """

    data: np.ndarray
    kind: str

    def __repr__(self) -> str:
        return f"Blocks{self.shape}[{self.kind}]"

    def __getitem__(self, index: int | slice) -> Blocks:
        """Some rows, or one of stacked matrices: a view."""
        return Blocks(self.data[index], self.kind)

    @property
    def shape(self) -> tuple[int, ...]:
        """Outputs and inputs: (d, n)."""
        kind = FORMATS[self.kind]
        return *self.data.shape[:-1], self.data.shape[-1] // kind.nbytes * kind.values

    @property
    def n(self) -> int:
        """The number of inputs (columns)."""
        return self.shape[-1]

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays that hold it."""
        return (self.data,)

    def rows(self, tokens: np.ndarray) -> np.ndarray:
        """The rows for `tokens` (T,), dequantized: (T, n) float32."""
        return dequantize(self.data[tokens], self.kind)

    def dequantize(self) -> np.ndarray:
        """All values: (d, n) float32, in new memory."""
        return dequantize(self.data, self.kind)

    def check(self, name: str) -> None:
        """Raise ValueError unless the blocks are stored as the kernels read them."""
        if self.kind not in FORMATS:
            known = ", ".join(FORMATS)
            raise ValueError(f"{name} is of kind {self.kind!r}, expected one of {known}")
        data, nbytes = self.data, FORMATS[self.kind].nbytes
        if data.dtype != np.uint8 or not data.flags.c_contiguous:
            raise ValueError(
                f"{name} is {data.dtype} with strides {data.strides}, expected "
                f"np.ascontiguousarray of uint8"
            )
        if data.ndim != 2 or not data.shape[1] or data.shape[1] % nbytes:
            raise ValueError(
                f"{name}: {self.kind} data have shape {data.shape}, expected (rows, a multiple of "
                f"{nbytes} bytes)"
            )


def dequantize(data: np.ndarray, kind: str) -> np.ndarray:
    """The values of blocks: data (..., bytes of a row) uint8 -> (..., n) float32."""
    form = FORMATS[kind]
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged scale may be inf or nan
        values = form.dequantize(np.ascontiguousarray(data).reshape(-1, form.nbytes))
    return values.reshape(*data.shape[:-1], data.shape[-1] // form.nbytes * form.values)


def half(blocks: np.ndarray, start: int) -> np.ndarray:
    """The float16 at byte `start` of each block: (blocks, 1) float32."""
    return blocks[:, start : start + 2].view("<f2").astype(np.float32)


def nibbles(packed: np.ndarray) -> np.ndarray:
    """(blocks, groups, w) bytes -> (blocks, groups, 2 w): the low halves, then the high halves."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def crumbs(packed: np.ndarray) -> np.ndarray:
    """(blocks, groups, w) -> (blocks, groups, 4 w): bits 0-1 of the bytes, then 2-3, 4-5, 6-7."""
    return np.concatenate([packed >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1)


def fifth_bits(packed: np.ndarray) -> np.ndarray:
    """(blocks, 4) bytes -> (blocks, 32): 16 for each bit that is set, in the order of the bits."""
    return np.unpackbits(packed, axis=-1, bitorder="little") << 4


def scaled(
    scales: np.ndarray, integers: np.ndarray, offsets: np.ndarray | None = None
) -> np.ndarray:
    """Scales (blocks, groups) times integers (blocks, values) in groups of equal size: float32.

    offsets: (blocks, groups), added to the values of their group.
    """
    values = scales[..., None] * integers.reshape(*scales.shape, -1).astype(np.float32)
    if offsets is not None:
        values += offsets[..., None]
    return np.asarray(values).reshape(len(scales), -1)


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    # d float16, 32 int8
    return scaled(half(blocks, 0), blocks[:, 2:].view(np.int8))


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    # d float16, 16 bytes of nibbles
    return scaled(half(blocks, 0), nibbles(blocks[:, 2:]).view(np.int8) - np.int8(8))


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    # d float16, the smallest value float16, 16 bytes of nibbles
    return scaled(half(blocks, 0), nibbles(blocks[:, 4:]), half(blocks, 2))


def _q5_0(blocks: np.ndarray) -> np.ndarray:
    # d float16, 4 bytes of fifth bits, 16 bytes of nibbles
    integers = nibbles(blocks[:, 6:]) | fifth_bits(blocks[:, 2:6])
    return scaled(half(blocks, 0), integers.view(np.int8) - np.int8(16))


def _q5_1(blocks: np.ndarray) -> np.ndarray:
    # d float16, the smallest value float16, 4 bytes of fifth bits, 16 bytes of nibbles
    integers = nibbles(blocks[:, 8:]) | fifth_bits(blocks[:, 4:8])
    return scaled(half(blocks, 0), integers, half(blocks, 2))


def _q2_k(blocks: np.ndarray) -> np.ndarray:
    # 16 bytes of nibbles (scale, offset), 64 bytes of 2 bits, d float16, d of the offsets float16
    scales = half(blocks, 80) * (blocks[:, :16] & 15)
    offsets = half(blocks, 82) * (blocks[:, :16] >> 4)
    return scaled(scales, crumbs(blocks[:, 16:80].reshape(-1, 2, 32)), -offsets)


def _q3_k(blocks: np.ndarray) -> np.ndarray:
    # 32 bytes of third bits, 64 bytes of 2 bits, 12 bytes of scales, d float16
    third = np.stack([blocks[:, :32] >> bit & 1 for bit in range(8)], axis=1)
    low = crumbs(blocks[:, 32:96].reshape(-1, 2, 32)).reshape(third.shape)
    # Scales have 6 bits: the lower four in bytes 0-7, as nibbles, the upper two in bytes 8-11.
    upper = crumbs(blocks[:, 104:108])
    scales = (nibbles(blocks[:, 96:104]) | upper << 4).view(np.int8) - np.int8(32)
    return scaled(half(blocks, 108) * scales, (low | third << 2).view(np.int8) - np.int8(4))


def _scales_and_offsets(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scales and offsets (blocks, 8) float32 in bytes 0-15 of a Q4_K or Q5_K block."""
    # d float16, d of the offsets float16, then 12 bytes for 16 numbers of 6 bits: the first four
    # scales are in a, the first four offsets in b. The others have their lower four bits in c (the
    # scale in the lower half of a byte) and their upper two bits in the upper bits of a and b.
    a, b, c = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([a & 63, c & 15 | a >> 6 << 4], axis=-1)
    offsets = np.concatenate([b & 63, c >> 4 | b >> 6 << 4], axis=-1)
    return half(blocks, 0) * scales, half(blocks, 2) * offsets


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    # 16 bytes of scales and offsets, 128 bytes of nibbles
    scales, offsets = _scales_and_offsets(blocks)
    return scaled(scales, nibbles(blocks[:, 16:].reshape(-1, 4, 32)), -offsets)


def _q5_k(blocks: np.ndarray) -> np.ndarray:
    # 16 bytes of scales and offsets, 32 bytes of fifth bits, 128 bytes of nibbles
    scales, offsets = _scales_and_offsets(blocks)
    fifth = np.stack([blocks[:, 16:48] >> bit & 1 for bit in range(8)], axis=1)
    low = nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(fifth.shape)
    return scaled(scales, low | fifth << 4, -offsets)


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    # 128 bytes of nibbles, 64 bytes of the upper 2 bits, 16 scales int8, d float16
    low = nibbles(blocks[:, :128].reshape(-1, 2, 64))
    upper = crumbs(blocks[:, 128:192].reshape(-1, 2, 32))
    scales = half(blocks, 208) * blocks[:, 192:208].view(np.int8)
    return scaled(scales, (low | upper << 4).view(np.int8) - np.int8(32))


# The 16 values of IQ4_NL and IQ4_XS: closer together near zero.
UNEVEN = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)


def _iq4_nl(blocks: np.ndarray) -> np.ndarray:
    # d float16, 16 bytes of nibbles: indices of UNEVEN
    return scaled(half(blocks, 0), UNEVEN[nibbles(blocks[:, 2:])])


def _iq4_xs(blocks: np.ndarray) -> np.ndarray:
    # d float16, 2 bytes with the upper 2 bits of 8 scales, 4 bytes with their lower 4, 128 bytes of
    # nibbles: indices of UNEVEN
    pairs = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=-1).reshape(-1, 8)
    upper = np.stack([blocks[:, 2 + i // 4] >> 2 * (i % 4) & 3 for i in range(8)], axis=-1)
    scales = half(blocks, 0) * ((pairs | upper << 4).view(np.int8) - np.int8(32))
    return scaled(scales, UNEVEN[nibbles(blocks[:, 8:].reshape(-1, 8, 16))])


def _tq1_0(blocks: np.ndarray) -> np.ndarray:
    # 48 bytes of five digits and 4 bytes of four digits to base three, d float16. The
    # digits in a byte b are those of the fraction b / 256 after the point. Multiplying by 3**i and
    # dropping the whole part moves digit i to the front: it is then the whole part of three times
    # the fraction.
    parts = [(slice(0, 32), 5), (slice(32, 48), 5), (slice(48, 52), 4)]
    rests = [blocks[:, at] * np.uint8(3**i) for at, digits in parts for i in range(digits)]
    digits = np.concatenate(rests, axis=-1).astype(np.uint16) * 3 >> 8
    return scaled(half(blocks, 52), digits.astype(np.int8) - np.int8(1))


def _tq2_0(blocks: np.ndarray) -> np.ndarray:
    # 64 bytes of 2 bits, d float16
    integers = crumbs(blocks[:, :64].reshape(-1, 2, 32)).view(np.int8) - np.int8(1)
    return scaled(half(blocks, 64), integers)


# kernels/matmul/block_kinds.py has the same formats as tables, of which the kernels are made.
FORMATS = {
    each.name: each
    for each in (
        Format("Q4_0", 2, 32, 18, _q4_0),
        Format("Q4_1", 3, 32, 20, _q4_1),
        Format("Q5_0", 6, 32, 22, _q5_0),
        Format("Q5_1", 7, 32, 24, _q5_1),
        Format("Q8_0", 8, 32, 34, _q8_0),
        Format("Q2_K", 10, 256, 84, _q2_k),
        Format("Q3_K", 11, 256, 110, _q3_k),
        Format("Q4_K", 12, 256, 144, _q4_k),
        Format("Q5_K", 13, 256, 176, _q5_k),
        Format("Q6_K", 14, 256, 210, _q6_k),
        Format("IQ4_NL", 20, 32, 18, _iq4_nl),
        Format("IQ4_XS", 23, 256, 136, _iq4_xs),
        Format("TQ1_0", 34, 256, 54, _tq1_0),
        Format("TQ2_0", 35, 256, 66, _tq2_0),
    )
}
