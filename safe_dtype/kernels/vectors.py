"""What kernels are written with: LLVM's instructions in loops, on 32 numbers at a time, whatever registers a CPU has.

Sums are added up in one order on every CPU: 32 of them side by side, then halves onto halves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

LANES = 32
BYTE, HALFWORD, WORD, LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
FLOAT, HALF, POINTER, NOTHING = ir.FloatType(), ir.HalfType(), ir.PointerType(), ir.VoidType()
FLOATS = ir.VectorType(FLOAT, LANES)

_STORED = {"float32": FLOAT, "bfloat16": HALFWORD, "float16": HALF, "int8": BYTE, "int4": BYTE}
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}  # int4 has two numbers in one
_READ_AND_KEPT = (0, 3, 1)  # of llvm.prefetch: to be read, near, in the cache of numbers


def loop(
    builder: ir.IRBuilder, start: ir.Value, stop: ir.Value, step: ir.Value, carried: Sequence[ir.Value],
    body: Callable[[ir.Value, list[ir.Value]], Sequence[ir.Value]],
) -> list[ir.Value]:  # fmt: skip
    """Write `for index in range(start, stop, step)`; return what `body` left of `carried` after the last turn.

    Args:
        builder: Stands behind the loop afterwards.
        start: Where the index begins.
        stop: The index that is not reached any more.
        step: What is added to it.
        carried: Values that go from turn to turn, as they are before the first.
        body: Writes one turn, of an index and what is carried; returns what is carried on.
    """
    before = builder.block
    head, turn, after = (builder.append_basic_block(name) for name in ("head", "turn", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(start.type)
    index.add_incoming(start, before)
    values = [builder.phi(value.type) for value in carried]
    for value, first in zip(values, carried, strict=True):
        value.add_incoming(first, before)
    builder.cbranch(builder.icmp_signed("<", index, stop), turn, after)
    builder.position_at_end(turn)
    following = body(index, list(values))
    index.add_incoming(builder.add(index, step), builder.block)
    for value, last in zip(values, following, strict=True):
        value.add_incoming(last, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return list(values)


def place(builder: ir.IRBuilder, pointer: ir.Value, index: ir.Value, dtype: str) -> ir.Value:
    """Return the address of number `index` of those at `pointer`; of int4 that of the byte."""
    if dtype == "int4":
        index = builder.lshr(index, LONG(1))
    return builder.gep(pointer, [index], source_etype=_STORED[dtype])


def read(builder: ir.IRBuilder, pointer: ir.Value, dtype: str, *, lanes: int = 1) -> ir.Value:
    """Return the number at `pointer` as a float, or a vector of those that lie there."""
    stored, wide = _STORED[dtype], _vector(FLOAT, lanes)
    numbers = builder.load(pointer, align=BYTES[dtype], typ=_vector(stored, lanes))
    if dtype == "float32":
        return numbers
    if dtype == "bfloat16":  # the upper half of a float
        upper = builder.shl(builder.zext(numbers, _vector(WORD, lanes)), _repeated(WORD, 16, lanes))
        return builder.bitcast(upper, wide)
    return builder.fpext(numbers, wide) if dtype == "float16" else builder.sitofp(numbers, wide)


def read_quickly(builder: ir.IRBuilder, pointer: ir.Value, dtype: str) -> ir.Value:
    """Return `LANES` numbers as `read` does, in the order that is quickest to read: see `in_order_of`."""
    if dtype != "bfloat16":
        return read(builder, pointer, dtype, lanes=LANES)
    # Pairs as they lie: the second number of one is a float with some digits more, which are cleared.
    kind = ir.VectorType(WORD, LANES // 2)
    pairs = builder.load(pointer, align=BYTES[dtype], typ=kind)
    halves = (
        builder.shl(pairs, ir.Constant(kind, [16] * kind.count)),
        builder.and_(pairs, ir.Constant(kind, [-(2**16)] * kind.count)),
    )
    first, second = (builder.bitcast(half, ir.VectorType(FLOAT, kind.count)) for half in halves)
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(WORD, LANES), list(range(LANES))))


def read_group(builder: ir.IRBuilder, pointer: ir.Value, scale: ir.Value) -> ir.Value:
    """Return `LANES` numbers of int4, times the float that is their scale, each rounded once.

    Of a byte the lower half is one of the first 16 numbers, and the upper half the one 16 behind it; 8 stands for zero.
    """
    half = LANES // 2
    kind = ir.VectorType(WORD, half)
    pairs = builder.zext(builder.load(pointer, align=1, typ=ir.VectorType(BYTE, half)), kind)
    halves = (
        builder.and_(pairs, ir.Constant(kind, [15] * half)),
        builder.lshr(pairs, ir.Constant(kind, [4] * half)),
    )
    codes = builder.shuffle_vector(*halves, ir.Constant(ir.VectorType(WORD, LANES), list(range(LANES))))
    zero = builder.fmul(scale, constant(-8.0))
    return multiply_add(builder, builder.sitofp(codes, FLOATS), spread(builder, scale), spread(builder, zero))


def numbers_in(size: int, dtype: str) -> int:
    """Return how many numbers so many bytes hold."""
    return 2 * size if dtype == "int4" else size // BYTES[dtype]


def in_order_of(builder: ir.IRBuilder, numbers: ir.Value, dtype: str) -> ir.Value:
    """Return `LANES` numbers in the order in which `read_quickly` returns those of `dtype`."""
    if dtype != "bfloat16":
        return numbers
    order = [*range(0, LANES, 2), *range(1, LANES, 2)]
    return builder.shuffle_vector(numbers, numbers, ir.Constant(ir.VectorType(WORD, LANES), order))


def write(builder: ir.IRBuilder, number: ir.Value, pointer: ir.Value, dtype: str) -> None:
    """Round a float, or each of a vector, to the nearest number of `dtype`, of two the even one, and write it there."""
    if dtype == "float16":
        number = builder.fptrunc(number, _vector(HALF, _lanes(number)))
    elif dtype == "bfloat16":
        number = _upper_half(builder, number)
    builder.store(number, pointer, align=BYTES[dtype])


def multiply_add(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """Return a * b + c, rounded once where the CPU has an instruction for that."""
    name = f"llvm.fmuladd.{f'v{a.type.count}' if isinstance(a.type, ir.VectorType) else ''}f32"
    return builder.call(_declared(builder.module, name, ir.FunctionType(a.type, [a.type] * 3)), [a, b, c])


def prefetch(builder: ir.IRBuilder, pointer: ir.Value) -> None:
    """Ask for memory that is needed soon; an address that is nobody's does no harm."""
    kind = ir.FunctionType(NOTHING, [POINTER, WORD, WORD, WORD])
    how = [WORD(number) for number in _READ_AND_KEPT]
    builder.call(_declared(builder.module, "llvm.prefetch.p0", kind), [pointer, *how])


def added_up(builder: ir.IRBuilder, numbers: ir.Value) -> ir.Value:
    """Return the sum of a vector: its halves are added up until one number is left."""
    count = numbers.type.count
    while count > 1:
        count //= 2
        lower, upper = (
            builder.shuffle_vector(numbers, numbers, ir.Constant(ir.VectorType(WORD, count), list(places)))
            for places in (range(count), range(count, 2 * count))
        )
        numbers = builder.fadd(lower, upper)
    return builder.extract_element(numbers, WORD(0))


def constant(number: float, lanes: int = 1) -> ir.Constant:
    """Return a float, or a vector of it."""
    return _repeated(FLOAT, number, lanes)


def zeros(lanes: int = 1) -> ir.Value:
    """Return zero, or a vector of them."""
    return _repeated(FLOAT, 0.0, lanes)


def each(builder: ir.IRBuilder, count: ir.Value, some: Callable[[ir.Value, int], None]) -> None:
    """Write loops over `count` numbers: `some` writes what is done with those from an index on, so many at once."""

    def turn(lanes: int) -> Callable[[ir.Value, list[ir.Value]], list[ir.Value]]:
        def body(index: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            some(index, lanes)
            return []

        return body

    whole = builder.and_(count, LONG(-LANES))
    loop(builder, LONG(0), whole, LONG(LANES), [], turn(LANES))
    loop(builder, whole, count, LONG(1), [], turn(1))


def rounded(builder: ir.IRBuilder, number: ir.Value, dtype: str) -> ir.Value:
    """Return floats rounded to numbers of `dtype`, as floats."""
    lanes = _lanes(number)
    if dtype == "float16":
        return builder.fpext(builder.fptrunc(number, _vector(HALF, lanes)), number.type)
    if dtype == "bfloat16":
        upper = builder.zext(_upper_half(builder, number), _vector(WORD, lanes))
        return builder.bitcast(builder.shl(upper, _repeated(WORD, 16, lanes)), number.type)
    return number


def square_root(builder: ir.IRBuilder, number: ir.Value) -> ir.Value:
    """Return the square root of a float, rounded once."""
    return builder.call(_declared(builder.module, "llvm.sqrt.f32", ir.FunctionType(FLOAT, [FLOAT])), [number])


def as_float(builder: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    """Return the float whose bits a field of a task is."""
    return builder.bitcast(builder.trunc(bits, WORD), FLOAT)


def spread(builder: ir.IRBuilder, number: ir.Value, lanes: int = LANES) -> ir.Value:
    """Return a vector of one number; for one lane the number."""
    if lanes == 1:
        return number
    first = builder.insert_element(ir.Constant(_vector(FLOAT, lanes), ir.Undefined), number, WORD(0))
    return builder.shuffle_vector(first, first, _repeated(WORD, 0, lanes))


def _upper_half(builder: ir.IRBuilder, number: ir.Value) -> ir.Value:
    """Return floats rounded to their upper 16 bits; NaN stays NaN, with torch's bits."""
    lanes = _lanes(number)

    def word(value: int) -> ir.Constant:
        return _repeated(WORD, value, lanes)

    bits = builder.bitcast(number, _vector(WORD, lanes))
    is_odd = builder.and_(builder.lshr(bits, word(16)), word(1))
    rounded = builder.lshr(builder.add(bits, builder.add(is_odd, word(0x7FFF))), word(16))
    is_nan = builder.fcmp_unordered("uno", number, number)
    return builder.trunc(builder.select(is_nan, word(0x7FC0), rounded), _vector(HALFWORD, lanes))


def _lanes(number: ir.Value) -> int:
    return number.type.count if isinstance(number.type, ir.VectorType) else 1


def _vector(kind: ir.Type, lanes: int) -> ir.Type:
    return kind if lanes == 1 else ir.VectorType(kind, lanes)


def _repeated(kind: ir.Type, number: float, lanes: int) -> ir.Constant:
    return ir.Constant(_vector(kind, lanes), number if lanes == 1 else [number] * lanes)


def _declared(module: ir.Module, name: str, kind: ir.FunctionType) -> ir.Function:
    return module.globals.get(name) or ir.Function(module, kind, name)
