"""Queries and keys turned by their positions, in LLVM's language."""

from __future__ import annotations

from llvmlite import ir

from .rotary import FIELDS, FUNCTION
from .task_ir import Task, module_of_parts
from .vectors import LONG, POINTER, each, loop, place, read, rounded, write


def rotary_ir(dtype: str) -> str:
    """Return the module with `FUNCTION`, for numbers in `dtype`. A part of its work is a position of an item of the batch."""
    return module_of_parts("rotary", FUNCTION, FIELDS, lambda builder, task, part: _turn(builder, task, part, dtype))


def _turn(builder: ir.IRBuilder, task: Task, part: ir.Value, dtype: str) -> None:
    item, position = builder.sdiv(part, task["positions"]), builder.srem(part, task["positions"])

    def at(pointer: str, batch: str, step: str) -> ir.Value:
        begin = builder.add(builder.mul(item, task[batch]), builder.mul(position, task[step]))
        return place(builder, builder.inttoptr(task[pointer], POINTER), begin, dtype)

    cos, sin = at("cos", "cos_batch", "cos_step"), at("sin", "sin_batch", "sin_step")
    half = builder.sdiv(task["width"], LONG(2))

    def turn_heads(name: str) -> None:
        xs, ys = (
            at(f"{name}_x", f"{name}_batch", f"{name}_step"), at(f"{name}_y", f"{name}_y_batch", f"{name}_y_step"),
        )  # fmt: skip

        def one_head(head: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            x = place(builder, xs, builder.mul(head, task[f"{name}_head"]), dtype)
            y = place(builder, ys, builder.mul(head, task[f"{name}_y_head"]), dtype)

            def some(column: ir.Value, lanes: int) -> None:
                columns = (column, builder.add(half, column))
                first, second = (read(builder, place(builder, x, one, dtype), dtype, lanes=lanes) for one in columns)
                turned = (builder.fneg(second), first)
                for number, other, place_of in zip((first, second), turned, columns, strict=True):
                    cosine, sine = (
                        read(builder, place(builder, table, place_of, dtype), dtype, lanes=lanes)
                        for table in (cos, sin)
                    )
                    along = rounded(builder, builder.fmul(number, cosine), dtype)
                    across = rounded(builder, builder.fmul(other, sine), dtype)
                    write(builder, builder.fadd(along, across), place(builder, y, place_of, dtype), dtype)

            each(builder, half, some)
            return []

        loop(builder, LONG(0), task[f"{name}_heads"], LONG(1), [], one_head)

    turn_heads("query")
    turn_heads("key")
