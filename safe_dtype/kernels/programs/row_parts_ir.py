"""Sums of rows, and their copies to other places, in LLVM's language."""

from __future__ import annotations

from llvmlite import ir

from ..task_ir import Task, module_of_parts
from ..vectors import LONG, POINTER, each, place, read, write
from .row_parts import FIELDS, FUNCTION


def row_parts_ir(dtype: str) -> str:
    """Return the module with `FUNCTION`, for numbers in `dtype`: each sum is rounded once. A part of its work is a head."""
    return module_of_parts(
        "row_parts", FUNCTION, FIELDS, lambda builder, task, part: _head(builder, task, part, dtype)
    )


def _head(builder: ir.IRBuilder, task: Task, part: ir.Value, dtype: str) -> None:
    item, head = builder.sdiv(part, task["heads"]), builder.srem(part, task["heads"])

    def begin(name: str, batch: str, step: str) -> ir.Value:
        behind = builder.add(builder.mul(item, task[batch]), builder.mul(head, task[step]))
        return place(builder, builder.inttoptr(task[name], POINTER), behind, dtype)

    a, b, y = begin("a", "batch", "head"), begin("b", "batch", "head"), begin("y", "y_batch", "y_head")
    is_copy = builder.icmp_signed("!=", task["is_copy"], LONG(0))

    def some(index: ir.Value, lanes: int) -> None:
        number, other = (
            read(builder, place(builder, numbers, index, dtype), dtype, lanes=lanes) for numbers in (a, b)
        )
        # A number of the dtype is rounded to itself.
        result = builder.select(is_copy, number, builder.fadd(number, other))
        write(builder, result, place(builder, y, index, dtype), dtype)

    each(builder, task["count"], some)
