"""Rows divided by their root mean square, in LLVM's language."""

from __future__ import annotations

from llvmlite import ir

from .norm_rows import FIELDS, FUNCTION
from .task_ir import Task, module_of_parts
from .vectors import (
    FLOAT,
    LANES,
    LONG,
    POINTER,
    added_up,
    as_float,
    each,
    loop,
    multiply_add,
    place,
    read,
    rounded,
    spread,
    square_root,
    write,
    zeros,
)


def norm_rows_ir(dtype: str) -> str:
    """Return the module with `FUNCTION`, for rows and a weight in `dtype`. A part of its work is a row."""
    return module_of_parts(
        "norm_rows", FUNCTION, FIELDS, lambda builder, task, part: _normalize(builder, task, part, dtype)
    )


def _normalize(builder: ir.IRBuilder, task: Task, row: ir.Value, dtype: str) -> None:
    width = task["width"]
    x, y = (
        place(builder, builder.inttoptr(task[name], POINTER), builder.mul(row, width), dtype) for name in ("x", "y")
    )
    weight = builder.inttoptr(task["weight"], POINTER)

    def add(lanes: int, column: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        number = read(builder, place(builder, x, column, dtype), dtype, lanes=lanes)
        return [multiply_add(builder, number, number, sums[0])]

    whole = builder.and_(width, LONG(-LANES))
    (sums,) = loop(builder, LONG(0), whole, LONG(LANES), [zeros(LANES)], lambda column, sums: add(LANES, column, sums))
    (total,) = loop(
        builder, whole, width, LONG(1), [added_up(builder, sums)], lambda column, sums: add(1, column, sums)
    )
    mean = builder.fdiv(total, builder.sitofp(width, FLOAT))
    root = square_root(builder, builder.fadd(mean, as_float(builder, task["epsilon"])))
    share = builder.fdiv(FLOAT(1.0), root)

    def divide(column: ir.Value, lanes: int) -> None:
        number = read(builder, place(builder, x, column, dtype), dtype, lanes=lanes)
        divided = rounded(builder, builder.fmul(number, spread(builder, share, lanes)), dtype)
        factor = read(builder, place(builder, weight, column, dtype), dtype, lanes=lanes)
        write(builder, builder.fmul(factor, divided), place(builder, y, column, dtype), dtype)

    each(builder, width, divide)
