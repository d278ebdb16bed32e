"""The product of few rows by a weight as it was saved, in LLVM's language: each row of the weight is read once, in order."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from .row_product import FIELDS, FUNCTION
from .vectors import (
    BYTES,
    LANES,
    LONG,
    NOTHING,
    POINTER,
    added_up,
    loop,
    multiply_add,
    place,
    prefetch,
    read,
    write,
    zeros,
)

_TOGETHER = 4  # rows of x that are multiplied at once: their sums stay in registers
_AHEAD = 4096  # bytes of a weight that are asked for before they are needed


def row_product_ir(weight: str, x: str) -> str:
    """Return the module with `FUNCTION`, for a weight and an x in these dtypes; biases and scales are in that of x.

    It takes rows of the weight from its task until none is left, so any number of threads may work on one, and each
    result is one thread's. Sums are floats, and rounded once.
    """
    module = ir.Module("row_product")
    function = ir.Function(module, ir.FunctionType(NOTHING, [POINTER]), FUNCTION)
    products = [_product(module, count, weight, x) for count in range(1, _TOGETHER + 1)]
    builder = ir.IRBuilder(function.append_basic_block())
    places = {name: builder.gep(function.args[0], [LONG(i)], source_etype=LONG) for i, name in enumerate(FIELDS)}
    task = {name: builder.load(at, typ=LONG) for name, at in places.items() if name != "next"}
    take, work, end = (function.append_basic_block(name) for name in ("take", "work", "end"))
    builder.branch(take)

    builder.position_at_end(take)
    first = builder.atomic_rmw("add", places["next"], task["at_a_time"], "monotonic")
    builder.cbranch(builder.icmp_signed("<", first, task["outputs"]), work, end)

    builder.position_at_end(work)
    beyond = builder.add(first, task["at_a_time"])
    stop = builder.select(builder.icmp_signed("<", beyond, task["outputs"]), beyond, task["outputs"])
    arguments = [builder.inttoptr(task[name], POINTER) for name in ("weight", "x", "y", "bias", "scales")]
    arguments += [task[name] for name in ("outputs", "inputs", "stride")]

    def one_output(output: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        def some_rows(row: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            _call_for(builder, products, builder.sub(task["rows"], row), [*arguments, output, row])
            return []

        loop(builder, LONG(0), task["rows"], LONG(_TOGETHER), [], some_rows)
        return []

    loop(builder, first, stop, LONG(1), [], one_output)
    builder.branch(take)

    builder.position_at_end(end)
    builder.ret_void()
    return str(module)


def _call_for(builder: ir.IRBuilder, products: list[ir.Function], left: ir.Value, arguments: list[ir.Value]) -> None:
    """Call the product of as many rows as are left, or of the most that there is one for."""
    after = builder.append_basic_block("called")
    cases = [builder.append_basic_block(f"rows{number}") for number, _ in enumerate(products, 1)]
    switch = builder.switch(left, cases[-1])
    for number, (case, product) in enumerate(zip(cases, products, strict=True), 1):
        if number < len(products):
            switch.add_case(LONG(number), case)
        builder.position_at_end(case)
        builder.call(product, arguments)
        builder.branch(after)
    builder.position_at_end(after)


def _product(module: ir.Module, count: int, weight_dtype: str, x_dtype: str) -> ir.Function:
    """Write what multiplies `count` rows of x, from `row` on, by the row `output` of the weight."""
    kind = ir.FunctionType(NOTHING, [POINTER] * 5 + [LONG] * 5)
    function = ir.Function(module, kind, f"multiply_{count}")
    function.linkage = "internal"
    weight, x, y, bias, scales, outputs, inputs, stride, output, row = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    weight = place(builder, weight, builder.mul(output, stride), weight_dtype)
    rows = [builder.add(row, LONG(number)) for number in range(count)]
    xs = [place(builder, x, builder.mul(x_row, inputs), x_dtype) for x_row in rows]

    def turn(index: ir.Value, sums: list[ir.Value], lanes: int) -> list[ir.Value]:
        at = place(builder, weight, index, weight_dtype)
        if lanes > 1:
            prefetch(builder, place(builder, at, LONG(_AHEAD // BYTES[weight_dtype]), weight_dtype))
        factors = read(builder, at, weight_dtype, lanes=lanes)
        others = [read(builder, place(builder, x_row, index, x_dtype), x_dtype, lanes=lanes) for x_row in xs]
        return [multiply_add(builder, factors, other, sum_) for other, sum_ in zip(others, sums, strict=True)]

    whole = builder.and_(inputs, LONG(-LANES))
    vectors = [zeros(LANES)] * count
    vectors = loop(builder, LONG(0), whole, LONG(LANES), vectors, lambda i, sums: turn(i, sums, LANES))
    sums = [added_up(builder, vector) for vector in vectors]
    sums = loop(builder, whole, inputs, LONG(1), sums, lambda i, sums: turn(i, sums, 1))
    sums = _if_there(builder, scales, output, x_dtype, sums, builder.fmul)
    sums = _if_there(builder, bias, output, x_dtype, sums, builder.fadd)
    for x_row, sum_ in zip(rows, sums, strict=True):
        write(builder, sum_, place(builder, y, builder.add(builder.mul(x_row, outputs), output), x_dtype), x_dtype)
    builder.ret_void()
    return function


def _if_there(
    builder: ir.IRBuilder, numbers: ir.Value, output: ir.Value, dtype: str, sums: list[ir.Value],
    change: Callable[[ir.Value, ir.Value], ir.Value],
) -> list[ir.Value]:  # fmt: skip
    """Change the sums by the number of this output, where there are such numbers."""
    is_there = builder.icmp_unsigned("!=", numbers, ir.Constant(POINTER, None))
    before = builder.block
    with builder.if_then(is_there):
        number = read(builder, place(builder, numbers, output, dtype), dtype)
        changed = [change(sum_, number) for sum_ in sums]
        inside = builder.block
    merged = []
    for old, new in zip(sums, changed, strict=True):
        phi = builder.phi(old.type)
        phi.add_incoming(old, before)
        phi.add_incoming(new, inside)
        merged.append(phi)
    return merged
