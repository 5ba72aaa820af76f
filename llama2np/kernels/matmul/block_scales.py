"""Vector code that reads the scales and offsets of blocks of GGUF's number formats.

As block_unpack.py, it is made from the tables in block_kinds.py. A `place` is a pointer to a block.
"""

from llvmlite import ir

from llama2np.kernels.matmul.block_kinds import joined
from llama2np.kernels.runtime.vectors import (
    F32,
    I8,
    I16,
    I32,
    I64,
    concat,
    const,
    load,
    pick,
    same,
)

_HALF = ir.HalfType()


def scales(builder, kind, isa, places):
    """(scales, offsets) of all groups of these blocks: vectors of float32. offsets may be None."""
    if kind.values == 32:
        bytes_ = [kind.scale] if kind.offset is None else [kind.scale, kind.offset]
        if distance_of_adjacent(kind, isa, places):
            found = [_halves_of_adjacent(builder, kind, places, byte) for byte in bytes_]
        else:
            found = [_halves(builder, places, byte) for byte in bytes_]
        return found[0], found[1] if found[1:] else None
    found = [_of_one_long_block(builder, kind, place) for place in places]
    scales, offsets = zip(*found, strict=True)
    return concat(builder, scales), concat(builder, offsets) if kind.offset is not None else None


def of_rows(builder, kind, isa, rows):
    """(scales, offsets) of each four groups of these blocks of four rows.

    rows: the places of the blocks of each row. Lane 4 q + r is that of group q, row r.
    """
    if kind.values == 32:
        yield from _of_short_blocks(builder, kind, isa, rows)
        return
    for places in zip(*rows, strict=True):
        yield from _of_long_blocks(builder, kind, places)


def _of_short_blocks(builder, kind, isa, rows):
    """`of_rows` for blocks of 32 values."""
    bytes_ = [kind.scale] if kind.offset is None else [kind.scale, kind.offset]
    adjacent = distance_of_adjacent(kind, isa, rows[0])
    for g in range(0, len(rows[0]), 4):
        places = [row[g : g + 4] for row in rows]
        if adjacent:
            halves = list(_halves_of_adjacent_rows(builder, kind, places, bytes_))
        else:
            in_order = [row[q] for q in range(4) for row in places]
            halves = [_halves(builder, in_order, byte) for byte in bytes_]
        yield halves[0], halves[1] if halves[1:] else None


def _halves_of_adjacent_rows(builder, kind, rows, bytes_):
    """The float16 at each of these bytes of four adjacent blocks of four rows, as float32.

    They are in the first 64 bytes of the blocks.
    """
    form, count = ir.VectorType(I16, 32), 4 * len(bytes_)
    vectors = [load(builder, row[0], const(0), form) for row in rows]
    numbers = [(kind.nbytes * q + byte) // 2 for byte in bytes_ for q in range(4)]
    numbers = [number + side for number in numbers for side in (0, 32)]
    pairs = zip(vectors[::2], vectors[1::2], strict=True)
    two, four = [
        builder.bitcast(pick(builder, *pair, numbers), ir.VectorType(I32, count)) for pair in pairs
    ]
    halves = pick(builder, two, four, [k + side for k in range(count) for side in (0, count)])
    halves = builder.bitcast(halves, ir.VectorType(_HALF, 4 * count))
    for k in range(len(bytes_)):
        some = pick(builder, halves, halves, range(16 * k, 16 * k + 16))
        yield builder.fpext(some, ir.VectorType(F32, 16))


def _of_long_blocks(builder, kind, places):
    """`of_rows` for a block of 256 values of each row."""
    count, parts = kind.values // kind.group, kind.scales
    if kind.offsets:  # both in one vector, as they have the same numbers of bits
        parts = [joined(*pair) for pair in zip(kind.scales, kind.offsets, strict=True)]
    numbers = _integers_of_rows(builder, kind, parts, places) if parts else None
    factors = _half_of_rows(builder, places, kind.scale)
    if kind.offsets:
        negative = _half_of_rows(builder, places, kind.offset, kind.sign)
    for g in range(0, count, 4):
        scales, offsets = factors, None
        if parts:
            bias, signed = kind.scale_bias, kind.scales_signed
            scales = builder.fmul(_floats(builder, numbers, g, bias, signed), factors)
        if kind.offsets:
            offsets = builder.fmul(_floats(builder, numbers, count + g), negative)
        yield scales, offsets


def _integers_of_rows(builder, kind, parts, places):
    """The integers that these parts make, as bytes: byte 4 i + r is the i-th one of row r."""
    byte_numbers = [byte for part in parts for byte in part.bytes]
    start = min(*byte_numbers, kind.nbytes - 16)  # 16 bytes have all of them
    sixteen = ir.VectorType(I8, 16)
    source = concat(builder, [load(builder, place, const(start), sixteen) for place in places])
    found, position = None, 0
    for part in parts:
        numbers = [16 * r + byte - start for byte in part.bytes for r in range(4)]
        words = ir.VectorType(I32, len(part.bytes))  # of the four rows
        value = builder.bitcast(pick(builder, source, source, numbers), words)
        shifts = [shift - position for shift in part.shifts]
        if max(shifts) > 0:
            right = ir.Constant(words, [max(shift, 0) for shift in shifts])
            value = builder.lshr(value, right)
        if min(shifts) < 0:
            left = ir.Constant(words, [max(-shift, 0) for shift in shifts])
            value = builder.shl(value, left)
        if part.count < 8:
            mask = ((1 << part.count) - 1 << position) * 0x01010101
            value = builder.and_(value, same(words, mask))
        found = value if found is None else builder.or_(found, value)
        position += part.count
    return builder.bitcast(found, ir.VectorType(I8, 4 * found.type.count))


def _floats(builder, numbers, first, bias=0, signed=False):
    """The integers number first ... first + 3 of each row, less the bias, as float32."""
    some = pick(builder, numbers, numbers, range(4 * first, 4 * first + 16))
    some = (builder.sext if signed else builder.zext)(some, ir.VectorType(I32, 16))
    if bias:
        some = builder.sub(some, same(some.type, bias))
    return builder.sitofp(some, ir.VectorType(F32, 16))


def _half_of_rows(builder, places, byte, sign=1):
    """The float16 at this byte of a block of each row, times the sign, in each quarter."""
    word = join_words(builder, places, byte)
    if sign < 0:
        word = builder.xor(word, const(-0x7FFF7FFF7FFF8000))  # the four signs
    halves = builder.fpext(builder.bitcast(word, ir.VectorType(_HALF, 4)), ir.VectorType(F32, 4))
    return pick(builder, halves, halves, 4 * [0, 1, 2, 3])


def _of_one_long_block(builder, kind, place):
    """`scales` for a block of 256 values."""
    if not kind.scales:
        one = same(ir.VectorType(F32, kind.values // kind.group), 1.0)
        return _times_half(builder, one, place, kind.scale), None
    if kind.offset is not None:
        return _scales_and_offsets(builder, kind, place)
    numbers = _integers(builder, kind, kind.scales, place, kind.scales_signed)
    if kind.scale_bias:
        numbers = builder.sub(numbers, same(numbers.type, kind.scale_bias))
    return _times_half(builder, numbers, place, kind.scale), None


def _scales_and_offsets(builder, kind, place):
    """Both of a block in one vector, as they have the same numbers of bits; then its halves."""
    parts = [joined(*pair) for pair in zip(kind.scales, kind.offsets, strict=True)]
    numbers = _integers(builder, kind, parts, place)
    count = numbers.type.count // 2
    address = builder.bitcast(builder.gep(place, [const(kind.scale)]), I32.as_pointer())
    word = builder.load(address, align=1)  # the offsets' float16 is the next one
    if kind.sign < 0:
        word = builder.xor(word, ir.Constant(I32, -(2**31)))
    word = builder.bitcast(builder.zext(word, I64), ir.VectorType(_HALF, 4))
    halves = builder.fpext(word, ir.VectorType(F32, 4))
    factors = pick(builder, halves, halves, [0] * count + [1] * count)
    values = builder.fmul(builder.sitofp(numbers, factors.type), factors)
    return tuple(pick(builder, values, values, range(k, k + count)) for k in (0, count))


def distance_of_adjacent(kind, isa, places):
    """The distance of these blocks, if vectors of 64 bytes are permuted to join four; or 0.

    Two such vectors have almost all bytes of four short blocks. For longer blocks this is slower.
    """
    short = kind.values == 32 and kind.nbytes <= 20
    return kind.nbytes if short and len(places) == 16 and isa.lanes == 16 else 0


def _halves_of_adjacent(builder, kind, places, byte):
    """`_halves` of blocks that are next to each other: 64 bytes have those of four."""
    form = ir.VectorType(I16, 32)
    vectors = [load(builder, place, const(0), form) for place in places[::4]]
    numbers = [(kind.nbytes * k + byte) // 2 + side for side in (0, 32) for k in range(4)]
    pairs = zip(vectors[::2], vectors[1::2], strict=True)
    halves = concat(builder, [pick(builder, *pair, numbers) for pair in pairs])
    halves = builder.bitcast(halves, ir.VectorType(_HALF, len(places)))
    return builder.fpext(halves, ir.VectorType(F32, len(places)))


def _halves(builder, places, byte):
    """The float16 at this byte of each block, as float32."""
    fours = [places[k : k + 4] for k in range(0, len(places), 4)]
    words = [join_words(builder, four, byte) for four in fours]
    halves = concat(builder, [builder.bitcast(word, ir.VectorType(_HALF, 4)) for word in words])
    return builder.fpext(halves, ir.VectorType(F32, len(places)))


def join_words(builder, places, byte):
    """The 16 bits at this byte of four blocks, in a general register.

    LLVM would insert each into an undefined vector register. For that it takes a register that is
    in use, and the loop waits for what computes it.
    """
    joined = const(0)
    for k, place in enumerate(places):
        address = builder.bitcast(builder.gep(place, [const(byte)]), I16.as_pointer())
        bits = builder.zext(builder.load(address, align=1), I64)
        joined = builder.or_(joined, builder.shl(bits, const(16 * k)))
    return joined


def _times_half(builder, numbers, place, byte):
    """Numbers times the float16 at this byte, in float32."""
    half = builder.bitcast(join_words(builder, [place], byte), ir.VectorType(_HALF, 4))
    half = builder.fpext(half, ir.VectorType(F32, 4))
    count = numbers.type.count
    if numbers.type.element != F32:
        numbers = builder.sitofp(numbers, ir.VectorType(F32, count))
    return builder.fmul(numbers, pick(builder, half, half, [0] * count))


def _integers(builder, kind, parts, place, signed=False):
    """The integers that these parts make, as a vector of int32."""
    if not signed and all(map(_in_fours, parts)):
        return _integers_in_fours(builder, parts, place)
    found, position = None, 0
    for part in parts:
        start = min(*part.bytes, kind.nbytes - 16)  # 16 bytes have all of them
        source = load(builder, place, const(start), ir.VectorType(I8, 16))
        value = pick(builder, source, source, [byte - start for byte in part.bytes])
        wide = ir.VectorType(I32, len(part.bytes))
        value = builder.sext(value, wide) if signed else builder.zext(value, wide)
        if any(part.shifts):
            value = builder.lshr(value, ir.Constant(wide, list(part.shifts)))
        if part.count < 8:
            value = builder.and_(value, same(wide, (1 << part.count) - 1))
        if position:
            value = builder.shl(value, same(wide, position))
        found = value if found is None else builder.or_(found, value)
        position += part.count
    return found


def _in_fours(part):
    """Whether each four integers, from the first on, are in adjacent bytes with equal shifts."""
    return all(
        part.bytes[i] == part.bytes[i - i % 4] + i % 4 and part.shifts[i] == part.shifts[i - i % 4]
        for i in range(len(part.bytes))
    ) and any(part.shifts)


def _integers_in_fours(builder, parts, place):
    """`_integers` by operations on four bytes in general registers, which are idle otherwise."""
    words = []
    for i in range(0, len(parts[0].bytes), 4):
        word, position = ir.Constant(I32, 0), 0
        for part in parts:
            address = builder.gep(place, [const(part.bytes[i])])
            four = builder.load(builder.bitcast(address, I32.as_pointer()), align=1)
            right = part.shifts[i] - position
            shift = builder.lshr if right > 0 else builder.shl
            four = shift(four, ir.Constant(I32, abs(right))) if right else four
            mask = ((1 << part.count) - 1 << position) * 0x01010101
            word = builder.or_(word, builder.and_(four, ir.Constant(I32, mask)))
            position += part.count
        words.append(builder.zext(word, I64))
    pairs = zip(words[::2], words[1::2], strict=True)
    longs = [builder.or_(low, builder.shl(high, const(32))) for low, high in pairs]
    bytes_ = ir.VectorType(I8, 8)
    numbers = concat(builder, [builder.bitcast(long, bytes_) for long in longs])
    return builder.zext(numbers, ir.VectorType(I32, numbers.type.count))
