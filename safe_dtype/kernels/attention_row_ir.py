"""Attention of one row over keys and values as a cache holds them, in LLVM's language: each is read once, in order."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from .attention_row import FIELDS, FUNCTION
from .functions_ir import exp
from .task_ir import Task, function_of_tasks
from .vectors import (
    FLOAT,
    LANES,
    LONG,
    POINTER,
    added_up,
    as_float,
    loop,
    multiply_add,
    place,
    read,
    spread,
    write,
    zeros,
)


def attention_row_ir(dtype: str, group: str) -> str:
    """Return the module with `FUNCTION`, for keys and values in `dtype`, of which `group` heads share each.

    A part of its work is a head of keys, and all that is to be done for the group that shares it.
    """
    count = int(group)
    module = ir.Module("attention_row")

    def one_head(builder: ir.IRBuilder, task: Task, head: ir.Value) -> None:
        _attend(builder, task, head, count, dtype)

    def widen(builder: ir.IRBuilder, task: Task) -> None:
        _widen(builder, task, count, dtype)

    function_of_tasks(module, FUNCTION, FIELDS, one_head, widen)
    return str(module)


def _widen(builder: ir.IRBuilder, task: Task, count: int, dtype: str) -> None:
    """Write the rows of all heads as floats, multiplied by the scale."""
    heads = builder.mul(task["shared"], LONG(count))
    rows, wide = (builder.inttoptr(task[name], POINTER) for name in ("query", "wide"))
    scale = spread(builder, as_float(builder, task["scale"]))

    def one_head(number: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        batch, head = builder.sdiv(number, heads), builder.srem(number, heads)
        begin = builder.add(builder.mul(batch, task["query_batch"]), builder.mul(head, task["query_head"]))
        row = place(builder, rows, begin, dtype)
        written = place(builder, wide, builder.mul(number, task["width"]), "float32")

        def some(column: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            numbers = builder.fmul(read(builder, place(builder, row, column, dtype), dtype, lanes=LANES), scale)
            write(builder, numbers, place(builder, written, column, "float32"), "float32")
            return []

        loop(builder, LONG(0), task["width"], LONG(LANES), [], some)
        return []

    loop(builder, LONG(0), builder.mul(task["end"], LONG(count)), LONG(1), [], one_head)


def _attend(builder: ir.IRBuilder, task: Task, head: ir.Value, count: int, dtype: str) -> None:
    """Write what computes the rows of the group of one head of keys."""
    row, inside = builder.sdiv(head, task["shared"]), builder.srem(head, task["shared"])

    def begin(name: str) -> ir.Value:
        at = builder.add(builder.mul(row, task[f"{name}_batch"]), builder.mul(inside, task[f"{name}_head"]))
        return place(builder, builder.inttoptr(task[f"{name}s"], POINTER), at, dtype)

    def of_group(name: str, length: ir.Value, kind: str = "float32") -> list[ir.Value]:
        first = builder.mul(builder.mul(head, LONG(count)), length)
        at = place(builder, builder.inttoptr(task[name], POINTER), first, kind)
        return [place(builder, at, builder.mul(LONG(number), length), kind) for number in range(count)]

    positions, width = task["positions"], task["width"]
    queries, outputs = of_group("wide", width), of_group("output", width, dtype)
    scores = of_group("scores", positions)
    largest = [_finite(builder, most) for most in _write_scores(builder, task, begin("key"), queries, scores, dtype)]
    sums = [_exponentiate(builder, at, positions, most) for at, most in zip(scores, largest, strict=True)]
    shares = [_share(builder, total) for total in sums]
    values = begin("value")

    def some_columns(column: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        def add(position: ir.Value, rows: list[ir.Value]) -> list[ir.Value]:
            at = builder.add(builder.mul(position, task["value_step"]), column)
            numbers = read(builder, place(builder, values, at, dtype), dtype, lanes=LANES)
            weights = [read(builder, place(builder, at, position, "float32"), "float32") for at in scores]
            return [
                multiply_add(builder, spread(builder, weight), numbers, sum_)
                for weight, sum_ in zip(weights, rows, strict=True)
            ]

        rows = loop(builder, LONG(0), positions, LONG(1), [zeros(LANES)] * count, add)
        for sum_, share, output in zip(rows, shares, outputs, strict=True):
            write(builder, builder.fmul(sum_, spread(builder, share)), place(builder, output, column, dtype), dtype)
        return []

    loop(builder, LONG(0), width, LONG(LANES), [], some_columns)


def _finite(builder: ir.IRBuilder, most: ir.Value) -> ir.Value:
    """Return the largest score; 0 where all are -Inf, so that exp of none of them is NaN."""
    return builder.select(builder.fcmp_ordered("==", most, FLOAT(float("-inf"))), FLOAT(0.0), most)


def _share(builder: ir.IRBuilder, total: ir.Value) -> ir.Value:
    """Return what exps are multiplied by: one by their sum; 0 where that is zero, as the result is then."""
    is_nothing = builder.fcmp_ordered("==", total, FLOAT(0.0))
    return builder.select(is_nothing, FLOAT(0.0), builder.fdiv(FLOAT(1.0), total))


def _write_scores(
    builder: ir.IRBuilder, task: Task, keys: ir.Value, queries: list[ir.Value], scores: list[ir.Value],
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
        most = largest if lanes == 1 else spread(builder, largest)

        def some(position: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            at = place(builder, scores, position, "float32")
            power = exp(builder, builder.fsub(read(builder, at, "float32", lanes=lanes), most))
            write(builder, power, at, "float32")
            return [builder.fadd(sums[0], power)]

        return some

    whole = builder.and_(positions, LONG(-LANES))
    (sums,) = loop(builder, LONG(0), whole, LONG(LANES), [zeros(LANES)], turn(LANES))
    (total,) = loop(builder, whole, positions, LONG(1), [added_up(builder, sums)], turn(1))
    return total
