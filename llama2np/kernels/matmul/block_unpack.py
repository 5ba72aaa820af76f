"""Vector code that unpacks blocks of GGUF's number formats, 64 values at a time.

All of it is made from the tables in block_kinds.py. A `place` is a pointer to a block. LLVM splits
the vectors of 64 bytes on CPUs with shorter ones.

Q4_0, four blocks a, b, c, d (s is a scale, each other letter stands for 16 bytes of nibbles):

    memory       s a s b s c s d
    load         a b c d              joined from four loads
    two vectors  a b c d              bits 0-3 of each byte: values 0-15 of the blocks
                 a b c d              bits 4-7, after a shift: values 16-31

Four adjacent bytes of a vector become one int32 of a dot product, so four adjacent int32 belong to
the same group of values (a block, here), whose other values are in the next vector.
"""

from llvmlite import ir
from numba.core import cgutils

from llama2np.kernels.matmul.block_scales import distance_of_adjacent, join_words
from llama2np.kernels.runtime.jit import cpu_has
from llama2np.kernels.runtime.vectors import I8, I16, I32, call, concat, const, load, pick, same

BYTES, WORDS = ir.VectorType(I8, 64), ir.VectorType(I32, 16)
PADDING = 128  # values: unpacked rows, and the input, are padded to a multiple


def steps(kind):
    """The numbers of blocks that are unpacked together: most of a row, and the rest of it."""
    if kind.values == 256:
        return (2, 1) if kind.group == 32 else (1, 1)
    return (16, 4)


def excess(kind, isa):
    """By how much the bytes of `vectors` are larger than the integers of the format."""
    return isa.bias if kind.signed else kind.bias


def largest(kind):
    """The largest byte of `vectors`."""
    return 255 if kind.signed else 2 ** sum(part.count for part in kind.parts) - 1


def walk(builder, kind, blocks, body):
    """Call body(places_of, first) in loops over a row of this many blocks.

    places_of(row) gives the places of blocks first, first + 1 ... of the row that begins at `row`.
    In the last step, they may repeat the last block of the row.
    """
    most, rest = steps(kind)
    whole = builder.udiv(blocks, const(most))
    with cgutils.for_range(builder, whole) as loop:
        first = builder.mul(loop.index, const(most))

        def adjacent(row):
            here = builder.gep(row, [builder.mul(first, const(kind.nbytes))])
            return [builder.gep(here, [const(kind.nbytes * b)]) for b in range(most)]

        body(adjacent, first)
    if rest == most:
        return
    done, last = builder.mul(whole, const(most)), builder.sub(blocks, const(1))
    left = builder.add(builder.sub(blocks, done), const(rest - 1))
    with cgutils.for_range(builder, builder.udiv(left, const(rest))) as loop:
        first = builder.add(done, builder.mul(loop.index, const(rest)))

        def limited(row):
            numbers = [builder.add(first, const(b)) for b in range(rest)]
            smaller = [builder.icmp_signed("<", number, last) for number in numbers]
            numbers = [builder.select(*pair, last) for pair in zip(smaller, numbers, strict=True)]
            return [builder.gep(row, [builder.mul(i, const(kind.nbytes))]) for i in numbers]

        body(limited, first)


def vectors(builder, kind, isa, places):
    """The values of these blocks in vectors of 64 bytes, larger than they are by `excess`.

    The vectors are in the order of `order`, in lists of `together(kind)`: the dot products of those
    in a list are added to the same 16 int32, of which four adjacent ones belong to a group. If the
    format is signed and the excess 0, the bytes are int8; else they are at most 255.
    """
    count = len(places) * kind.values // kind.group
    return [four_groups(builder, kind, isa, places, g) for g in range(count // 4)]


def four_groups(builder, kind, isa, places, g):
    """The list number g of `vectors`: the values of groups 4 g to 4 g + 3 of these blocks."""
    values = [(place, i) for place in places for i in range(kind.values)]
    chunks = [[values[i] for i in chunk] for chunk in order(kind.group, len(values))]
    distance, size = distance_of_adjacent(kind, isa, places), together(kind)
    some = chunks[g * size : (g + 1) * size]
    return [_vector(builder, kind, isa, chunk, distance) for chunk in some]


def together(kind):
    """The number of vectors whose products are added: each has 16 values of four groups."""
    return kind.group // 16


def order(group, count):
    """The numbers of `count` values in the order in which `vectors` has them, in lists of 64.

    A list has 16 values of each of four groups. For groups of 32 the next list has the others.
    """
    return [
        [start + group * k + part + i for k in range(4) for i in range(16)]
        for start in range(0, count, 4 * group)
        for part in range(0, group, 16)
    ]


def _vector(builder, kind, isa, chunk, distance):
    """The 64 values (place, number) of a chunk."""
    value, position = None, 0
    for part in kind.parts:
        some = _part(builder, isa, part, chunk, position, distance)
        value = some if value is None else builder.or_(value, some)
        position += part.count
    if kind.table:
        table = [(byte + isa.bias + 128) % 256 - 128 for byte in kind.table]  # as int8
        return _in_pieces(isa, builder, lambda piece: isa.lookup(builder, table, piece), value)
    if kind.signed:
        return builder.bitcast(isa.biased(builder, builder.bitcast(value, WORDS)), BYTES)
    return value


def _part(builder, isa, part, chunk, position, distance):
    """`part` of the 64 values (place, number) of a chunk, from bit `position` on of each byte."""
    if part.count == 1 and part.bytes[7] == part.bytes[0]:  # a bit for each value, in their order
        return _bits(builder, part, chunk, position)
    if part.count == 4 and len({part.shifts[i] for _, i in chunk}) == 2:
        return _pick_nibbles(builder, isa, part, chunk)
    if distance:
        bytes_ = [distance * (k // 16) + part.bytes[i] for k, (_, i) in enumerate(chunk)]
        value = _gather_adjacent(builder, chunk[0][0], bytes_)
    else:
        value = _gather(builder, [(place, part.bytes[i]) for place, i in chunk])
    if part.powers:
        value = builder.mul(value, ir.Constant(BYTES, [part.powers[i] for _, i in chunk]))
        wide = builder.zext(value, ir.VectorType(I16, 64))
        wide = builder.lshr(builder.mul(wide, same(wide.type, 3)), same(wide.type, 8))
        return builder.trunc(wide, BYTES)
    shifts = [part.shifts[i] - position for _, i in chunk]
    return _masked(builder, isa, value, shifts, ((1 << part.count) - 1) << position)


def _pick_nibbles(builder, isa, part, chunk):
    """The same for both halves of bytes: 64 bytes are split, which serves another chunk, too.

    Q4_K: a byte has a value of a group and one of the next group.
    """
    place, first = chunk[0][0], part.bytes[0]
    at = [part.bytes[i] - first for _, i in chunk]
    start = min(at) // 64 * 64
    source = load(builder, place, const(first + start), BYTES)
    halves = [_masked(builder, isa, source, [shift] * 64, 15) for shift in (0, 4)]
    numbers = [k - start + 64 * (part.shifts[i] > 0) for k, (_, i) in zip(at, chunk, strict=True)]
    return pick(builder, *halves, numbers)


def _bits(builder, part, chunk, position):
    """The same for a part of 32 bits a block, of which the chunk has 16 of each of four blocks."""
    byte = part.bytes[chunk[0][1]]
    bits = join_words(builder, [place for place, _ in chunk[::16]], byte)
    bits = builder.bitcast(bits, ir.VectorType(ir.IntType(1), 64))
    return builder.select(bits, same(BYTES, 1 << position), same(BYTES, 0))


def _gather(builder, wanted):
    """The bytes (place, number): loads of up to 64 adjacent ones, joined."""
    (place, first), count = wanted[0], len(wanted)
    if wanted == [(place, first + i) for i in range(count)]:
        return load(builder, place, const(first), ir.VectorType(I8, count))
    half = count // 2
    if wanted[:half] == wanted[half:]:
        part = _gather(builder, wanted[:half])
        return pick(builder, part, part, [*range(half), *range(half)])
    return concat(builder, [_gather(builder, part) for part in (wanted[:half], wanted[half:])])


def _gather_adjacent(builder, place, wanted):
    """These bytes, of which the last is before the 128th: two loads, whose pairs are permuted.

    The first load has the scales, too (block_scales.of_rows).
    """
    form, second = ir.VectorType(I16, 32), wanted[-1] + 1 - 64
    sources = [load(builder, place, const(start), form) for start in (0, second)]
    pairs = [byte if byte < 64 else byte - second + 64 for byte in wanted[::2]]
    return builder.bitcast(pick(builder, *sources, [pair // 2 for pair in pairs]), BYTES)


def _masked(builder, isa, value, shifts, mask):
    """These bits of bytes that are shifted to the right; by negative numbers to the left.

    shifts: of each byte, the same for each eight.
    """
    if any(shifts) and mask < 255 and isa.lanes == 16 and cpu_has("gfni"):
        # Each bit is the product of a row of a matrix and the bits of a byte: one instruction.
        matrices = [
            1 << bit + shift if mask >> bit & 1 else 0
            for shift in shifts[::8]
            for bit in reversed(range(8))
        ]
        none = ir.Constant(I8, 0)
        name = "llvm.x86.vgf2p8affineqb.512"
        return call(builder, name, BYTES, value, ir.Constant(BYTES, matrices), none)
    if any(shifts):
        words = builder.bitcast(value, WORDS)
        shift = builder.lshr if max(shifts) > 0 else builder.shl
        by = ir.Constant(WORDS, [abs(number) for number in shifts[::4]])
        value = builder.bitcast(shift(words, by), BYTES)  # adjacent bytes are mixed up
    return value if mask == 255 else builder.and_(value, same(BYTES, mask))


def _in_pieces(isa, builder, function, *values):
    """function of vectors of the instruction set's length, for vectors that are longer."""
    count = 16 // isa.lanes
    if count == 1:
        return function(*values)
    pieces = []
    for k in range(count):
        some = []
        for value in values:
            length = value.type.count // count
            some.append(pick(builder, value, value, range(k * length, (k + 1) * length)))
        pieces.append(function(*some))
    return concat(builder, pieces)


def instruction(kind, isa):
    """The instruction (builder, total, values, x) for the values of `vectors`."""
    return isa.instruction if kind.signed else isa.small


def dot(builder, kind, isa, total, values, x):
    """total (16 int32) + the products of 64 values and 64 int8 of the input, each a sum of four."""
    multiply = instruction(kind, isa)
    return _in_pieces(isa, builder, lambda *some: multiply(builder, *some), total, values, x)
