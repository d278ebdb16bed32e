"""Attention of one row over keys and values as a cache holds them, in LLVM's language: each is read once, in order."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from .attention_row import FIELDS, FUNCTION
from .vectors import (
    FLOAT,
    LANES,
    LONG,
    NOTHING,
    POINTER,
    WORD,
    added_up,
    loop,
    multiply_add,
    place,
    read,
    write,
    zeros,
)

# exp(x) is 2**n * exp(r) with r in [-ln2 / 2, ln2 / 2]; ln2 in two parts, of which n times the first is exact.
_PER_TWO, _LN2, _LN2_REST = 1.44269504, 0.693359375, -2.12194440e-4
_ROUNDS = 1.5 * 2**23  # a float that it is added to has no digits behind the point
_LEAST = -87.0  # below it exp is no normal float any more
_SERIES = (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)


def attention_row_ir(dtype: str, group: str) -> str:
    """Return the module with `FUNCTION`, for keys and values in `dtype`, of which `group` heads share each.

    It takes heads of keys from its task until none is left, and does all that is to be done for the group that shares it.
    The row, the scores and the result are floats.
    """
    count = int(group)
    module = ir.Module("attention_row")
    function = ir.Function(module, ir.FunctionType(NOTHING, [POINTER]), FUNCTION)
    builder = ir.IRBuilder(function.append_basic_block())
    places = {name: builder.gep(function.args[0], [LONG(i)], source_etype=LONG) for i, name in enumerate(FIELDS)}
    task = {name: builder.load(at, typ=LONG) for name, at in places.items() if name != "next"}
    take, work, end = (function.append_basic_block(name) for name in ("take", "work", "end"))
    builder.branch(take)

    builder.position_at_end(take)
    head = builder.atomic_rmw("add", places["next"], LONG(1), "monotonic")
    builder.cbranch(builder.icmp_signed("<", head, task["heads"]), work, end)

    builder.position_at_end(work)
    _attend(builder, task, head, count, dtype)
    builder.branch(take)

    builder.position_at_end(end)
    builder.ret_void()
    return str(module)


def _attend(builder: ir.IRBuilder, task: dict[str, ir.Value], head: ir.Value, count: int, dtype: str) -> None:
    """Write what computes the rows of the group of one head of keys."""
    row, inside = builder.sdiv(head, task["shared"]), builder.srem(head, task["shared"])

    def begin(name: str) -> ir.Value:
        at = builder.add(builder.mul(row, task[f"{name}_batch"]), builder.mul(inside, task[f"{name}_head"]))
        return place(builder, builder.inttoptr(task[f"{name}s"], POINTER), at, dtype)

    def of_group(name: str, length: ir.Value) -> list[ir.Value]:
        first = builder.mul(builder.mul(head, LONG(count)), length)
        at = place(builder, builder.inttoptr(task[name], POINTER), first, "float32")
        return [place(builder, at, builder.mul(LONG(number), length), "float32") for number in range(count)]

    positions, width = task["positions"], task["width"]
    queries, outputs = of_group("query", width), of_group("output", width)
    scores = of_group("scores", positions)
    largest = _write_scores(builder, task, begin("key"), queries, scores, dtype)
    sums = [_exponentiate(builder, at, positions, most) for at, most in zip(scores, largest, strict=True)]
    shares = [builder.fdiv(FLOAT(1.0), total) for total in sums]
    values = begin("value")

    def some_columns(column: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        def add(position: ir.Value, rows: list[ir.Value]) -> list[ir.Value]:
            at = builder.add(builder.mul(position, task["value_step"]), column)
            numbers = read(builder, place(builder, values, at, dtype), dtype, lanes=LANES)
            weights = [read(builder, place(builder, at, position, "float32"), "float32") for at in scores]
            return [
                multiply_add(builder, _spread(builder, weight), numbers, sum_)
                for weight, sum_ in zip(weights, rows, strict=True)
            ]

        rows = loop(builder, LONG(0), positions, LONG(1), [zeros(LANES)] * count, add)
        for sum_, share, output in zip(rows, shares, outputs, strict=True):
            result = builder.fmul(sum_, _spread(builder, share))
            write(builder, result, place(builder, output, column, "float32"), "float32")
        return []

    loop(builder, LONG(0), width, LONG(LANES), [], some_columns)


def _write_scores(
    builder: ir.IRBuilder, task: dict[str, ir.Value], keys: ir.Value, queries: list[ir.Value], scores: list[ir.Value],
    dtype: str,
) -> list[ir.Value]:  # fmt: skip
    """Write the products of the queries and all keys down; return the largest of each query."""

    def one_position(position: ir.Value, largest: list[ir.Value]) -> list[ir.Value]:
        key = place(builder, keys, builder.mul(position, task["key_step"]), dtype)

        def add(column: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            numbers = read(builder, place(builder, key, column, dtype), dtype, lanes=LANES)
            others = [read(builder, place(builder, at, column, "float32"), "float32", lanes=LANES) for at in queries]
            return [multiply_add(builder, numbers, other, sum_) for other, sum_ in zip(others, sums, strict=True)]

        sums = loop(builder, LONG(0), task["width"], LONG(LANES), [zeros(LANES)] * len(queries), add)
        products = [added_up(builder, vector) for vector in sums]
        for product, at in zip(products, scores, strict=True):
            write(builder, product, place(builder, at, position, "float32"), "float32")
        return [
            builder.select(builder.fcmp_ordered(">", product, most), product, most)
            for product, most in zip(products, largest, strict=True)
        ]

    least = [FLOAT(float("-inf"))] * len(queries)
    return loop(builder, LONG(0), task["positions"], LONG(1), least, one_position)


def _exponentiate(builder: ir.IRBuilder, scores: ir.Value, positions: ir.Value, largest: ir.Value) -> ir.Value:
    """Replace each score by exp of what it is below the largest; return their sum."""

    def turn(lanes: int) -> Callable[[ir.Value, list[ir.Value]], list[ir.Value]]:
        most = largest if lanes == 1 else _spread(builder, largest)

        def some(position: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            at = place(builder, scores, position, "float32")
            power = _exp(builder, builder.fsub(read(builder, at, "float32", lanes=lanes), most))
            write(builder, power, at, "float32")
            return [builder.fadd(sums[0], power)]

        return some

    whole = builder.and_(positions, LONG(-LANES))
    (sums,) = loop(builder, LONG(0), whole, LONG(LANES), [zeros(LANES)], turn(LANES))
    (total,) = loop(builder, whole, positions, LONG(1), [added_up(builder, sums)], turn(1))
    return total


def _exp(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Return exp(x) of floats that are not above 0, within 2e-7 of it; NaN of NaN."""

    def number(value: float) -> ir.Constant:
        return ir.Constant(x.type, [value] * x.type.count if isinstance(x.type, ir.VectorType) else value)

    whole = ir.VectorType(WORD, x.type.count) if isinstance(x.type, ir.VectorType) else WORD

    def integer(value: int) -> ir.Constant:
        return ir.Constant(whole, [value] * whole.count if isinstance(whole, ir.VectorType) else value)

    is_nothing = builder.fcmp_ordered("<", x, number(_LEAST))
    near = builder.select(is_nothing, number(_LEAST), x)
    shifted = multiply_add(builder, near, number(_PER_TWO), number(_ROUNDS))
    twos = builder.fsub(shifted, number(_ROUNDS))
    rest = multiply_add(builder, twos, number(-_LN2), near)
    rest = multiply_add(builder, twos, number(-_LN2_REST), rest)
    power = number(_SERIES[0])
    for factor in _SERIES[1:]:
        power = multiply_add(builder, power, rest, number(factor))
    exponent = builder.shl(
        builder.bitcast(shifted, whole), integer(23)
    )  # the bits above are those of _ROUNDS: shifted out
    result = builder.bitcast(builder.add(builder.bitcast(power, whole), exponent), x.type)
    result = builder.select(is_nothing, number(0.0), result)
    return builder.select(builder.fcmp_unordered("uno", x, x), x, result)


def _spread(builder: ir.IRBuilder, number: ir.Value) -> ir.Value:
    """Return a vector of one number."""
    kind = ir.VectorType(FLOAT, LANES)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), number, WORD(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(WORD, LANES), [0] * LANES))
