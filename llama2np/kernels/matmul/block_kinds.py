"""GGUF's number formats as tables: where the bits of each value, scale and offset are in a block.

This is all that the kernels know about a format; block_unpack.py makes vector code of it. The
values are the same as in model/gguf_blocks.py:

    value[i] = scale[i // group] * (integer[i] - bias) + offset[i // group]
"""

from typing import NamedTuple

from llama2np.model.gguf_blocks import FORMATS, UNEVEN


class Bits(NamedTuple):
    """Small integers in a block: the i-th is `count` bits of block[bytes[i]] >> shifts[i].

    With powers it is a digit to base three instead. The digits in a byte are those of the fraction
    byte / 256 after the point. Multiplying by powers[i] and dropping the whole part moves the digit
    to the front: it is then the whole part of three times the fraction.
    """

    count: int
    bytes: tuple
    shifts: tuple
    powers: tuple = ()


def packed(start, count, run, numbers):
    """Integers of `count` bits in bytes from `start` on; `run` neighbours are in adjacent bytes.

    First come the low bits of `run` bytes, then the next bits of these bytes, and so on; then the
    next `run` bytes. Four integers of 2 bits with runs of 1, and eight with runs of 2:

        bits of a byte      7 6 5 4 3 2 1 0        7 6 5 4 3 2 1 0   7 6 5 4 3 2 1 0
        integers             3   2   1   0          6   4   2   0     7   5   3   1
    """
    per_byte = 8 // count
    places = [divmod(i, run * per_byte) for i in range(numbers)]
    return Bits(
        count,
        tuple(start + block * run + i % run for block, i in places),
        tuple(count * (i // run) for _, i in places),
    )


def joined(*parts):
    """The integers of one Bits after those of another; both have the same `count`."""
    return Bits(parts[0].count, *(sum(fields, ()) for fields in list(zip(*parts, strict=True))[1:]))


class Kind(NamedTuple):
    """A number format.

    parts: Bits whose parts make the integer of a value, the low bits first. signed: the integer is
    an int8, or the index of one in `table`.
    scale, offset: the byte of the float16 by which the integers in `scales`, `offsets` are
    multiplied, or which is itself the only scale or offset. offset is None: there are none.
    sign: -1 if offsets are subtracted.
    """

    name: str
    group: int  # values that share a scale
    parts: tuple
    scale: int
    bias: int = 0
    signed: bool = False
    table: tuple = ()
    scales: tuple = ()
    scale_bias: int = 0
    scales_signed: bool = False
    offset: int | None = None
    offsets: tuple = ()
    sign: int = 1

    @property
    def values(self):
        """The number of values in a block."""
        return FORMATS[self.name].values

    @property
    def nbytes(self):
        """The number of bytes in a block."""
        return FORMATS[self.name].nbytes


def _nibbles(start):
    """The 32 values of a small block: first the low halves of its 16 bytes, then the high ones."""
    return packed(start, 4, 16, 32)


def _fifth_bits(start):
    return packed(start, 1, 1, 32)


def _ternary(start, run, digits):
    """The digits to base three of `run` bytes from `start` on: the first digit of all bytes, ..."""
    bytes_ = tuple(range(start, start + run)) * digits
    powers = tuple(3**digit for digit in range(digits) for _ in range(run))
    return Bits(2, bytes_, (0,) * len(bytes_), powers)


_TABLE = tuple(int(value) for value in UNEVEN)
# Q4_K and Q5_K: scales and offsets have 6 bits, in bytes 4-15. Those of the last four groups have
# their low four bits in bytes 12-15 (scales in the low halves), and the others where the low six
# bits are those of the first four groups.
_SIX_BITS = {
    "scale": 0,
    "scales": (
        joined(packed(4, 4, 4, 4), packed(12, 4, 4, 4)),
        Bits(2, (4, 5, 6, 7) * 2, (4,) * 4 + (6,) * 4),
    ),
    "offset": 2,
    "offsets": (
        Bits(4, (8, 9, 10, 11, 12, 13, 14, 15), (0,) * 4 + (4,) * 4),
        Bits(2, (8, 9, 10, 11) * 2, (4,) * 4 + (6,) * 4),
    ),
    "sign": -1,
}

KINDS = {
    kind.name: kind
    for kind in (
        Kind("Q8_0", 32, (packed(2, 8, 32, 32),), scale=0, signed=True),
        Kind("Q4_0", 32, (_nibbles(2),), scale=0, bias=8),
        Kind("Q4_1", 32, (_nibbles(4),), scale=0, offset=2),
        Kind("Q5_0", 32, (_nibbles(6), _fifth_bits(2)), scale=0, bias=16),
        Kind("Q5_1", 32, (_nibbles(8), _fifth_bits(4)), scale=0, offset=2),
        Kind("IQ4_NL", 32, (_nibbles(2),), scale=0, signed=True, table=_TABLE),
        Kind(
            "Q2_K", 16, (packed(16, 2, 32, 256),),
            scale=80, scales=(Bits(4, tuple(range(16)), (0,) * 16),),
            offset=82, offsets=(Bits(4, tuple(range(16)), (4,) * 16),), sign=-1,
        ),
        Kind(
            "Q3_K", 16, (packed(32, 2, 32, 256), packed(0, 1, 32, 256)), bias=4,
            scale=108, scales=(packed(96, 4, 8, 16), packed(104, 2, 4, 16)), scale_bias=32,
        ),
        Kind("Q4_K", 32, (packed(16, 4, 32, 256),), **_SIX_BITS),
        Kind("Q5_K", 32, (packed(48, 4, 32, 256), packed(16, 1, 32, 256)), **_SIX_BITS),
        Kind(
            "Q6_K", 16, (packed(0, 4, 64, 256), packed(128, 2, 32, 256)), bias=32,
            scale=208, scales=(packed(192, 8, 16, 16),), scales_signed=True,
        ),
        Kind(
            "IQ4_XS", 32, (packed(8, 4, 16, 256),), signed=True, table=_TABLE,
            scale=0, scales=(packed(4, 4, 1, 8), packed(2, 2, 1, 8)), scale_bias=32,
        ),
        Kind(
            "TQ1_0", 32, (joined(_ternary(0, 32, 5), _ternary(32, 16, 5), _ternary(48, 4, 4)),),
            scale=52, bias=1,
        ),
        Kind("TQ2_0", 32, (packed(0, 2, 32, 256),), scale=64, bias=1),
    )
}  # fmt: skip
