"""The product of few rows by weights as they were saved, in LLVM's language: each row of a weight is read once, in order."""

from __future__ import annotations

import functools
from collections.abc import Callable

from llvmlite import ir

from .functions_ir import silu
from .row_product import FIELDS, FUNCTION, OF_WEIGHT
from .task_ir import BEHIND, Task, function_of_tasks
from .vectors import (
    BYTES,
    LANES,
    LONG,
    NOTHING,
    POINTER,
    added_up,
    each,
    in_order_of,
    loop,
    multiply_add,
    place,
    prefetch,
    read,
    read_quickly,
    rounded,
    write,
    zeros,
)

_LINE = 64  # bytes that memory is read in
_AHEAD = 2048  # bytes of a weight that are asked for before they are needed


def row_product_ir(weight: str, x: str, together: str) -> str:
    """Return the module with `FUNCTION`, for weights and an x in these dtypes; biases and scales are in that of x.

    Each result is one thread's. Sums are floats, and rounded once. Where that makes numbers of a weight quicker to read,
    rows of x are written in pairs before, as they are. Of `together` rows sums stay in registers.
    """
    module = ir.Module("row_product")
    products = {rows: _product(module, rows, weight, x) for rows in _sizes(int(together))}

    def some_outputs(builder: ir.IRBuilder, task: Task, first: ir.Value) -> None:
        of_weight = _weight_of(builder, task, first)
        first = builder.sub(first, of_weight["begin"])
        beyond = builder.add(first, task["at_a_time"])
        stop = builder.select(builder.icmp_signed("<", beyond, of_weight["outputs"]), beyond, of_weight["outputs"])
        arguments = [builder.inttoptr(of_weight[name], POINTER) for name in ("weight", "y", "bias", "scales")]
        arguments += [builder.inttoptr(task["wide"], POINTER), task["inputs"]]
        arguments += [of_weight["outputs"], of_weight["stride"], first, stop]

        row: ir.Value = LONG(0)
        for rows, product in products.items():
            row = _in_groups(builder, row, task["rows"], rows, functools.partial(_call, builder, product, arguments))

    def widen(builder: ir.IRBuilder, task: Task) -> None:
        rows, wide = (builder.inttoptr(task[name], POINTER) for name in ("x", "wide"))

        def one_row(row: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            begin = builder.mul(row, task["inputs"])
            _widen(
                builder,
                place(builder, rows, begin, x),
                place(builder, wide, begin, "float32"),
                task["inputs"],
                (weight, x),
            )
            return []

        loop(builder, LONG(0), task["rows"], LONG(1), [], one_row)

    def gate(builder: ir.IRBuilder, task: Task) -> None:
        with builder.if_then(builder.icmp_signed("!=", task["is_gated"], LONG(0))):
            _gate(builder, task, x)

    function_of_tasks(module, FUNCTION, FIELDS, some_outputs, widen, gate)
    return str(module)


def _gate(builder: ir.IRBuilder, task: Task, dtype: str) -> None:
    """Multiply the second product by SiLU of the first, in the place of the first, rounded as torch rounds."""
    gates, others = (builder.inttoptr(_field(builder, task, LONG(number), "y"), POINTER) for number in (0, 1))
    count = builder.mul(task["rows"], _field(builder, task, LONG(0), "outputs"))

    def some(index: ir.Value, lanes: int) -> None:
        at = place(builder, gates, index, dtype)
        gate = rounded(builder, silu(builder, read(builder, at, dtype, lanes=lanes)), dtype)
        other = read(builder, place(builder, others, index, dtype), dtype, lanes=lanes)
        write(builder, builder.fmul(gate, other), at, dtype)

    each(builder, count, some)


def _weight_of(builder: ir.IRBuilder, task: Task, output: ir.Value) -> dict[str, ir.Value]:
    """Return what the task holds for the weight that has this output, counted through all of them."""

    def later(number: ir.Value, latest: list[ir.Value]) -> list[ir.Value]:
        has_begun = builder.icmp_signed("<=", _field(builder, task, number, "begin"), output)
        return [builder.select(has_begun, number, latest[0])]

    (number,) = loop(builder, LONG(1), task["weights"], LONG(1), [LONG(0)], later)
    return {name: _field(builder, task, number, name) for name in OF_WEIGHT}


def _field(builder: ir.IRBuilder, task: Task, number: ir.Value, name: str) -> ir.Value:
    """Return what the task holds of that name for a weight."""
    at = builder.add(builder.mul(number, LONG(len(OF_WEIGHT))), LONG(OF_WEIGHT.index(name)))
    return builder.load(builder.gep(task[BEHIND], [at], source_etype=LONG), typ=LONG)


def _sizes(most: int) -> list[int]:
    """Return how many rows there is a product for, the most first: any number is a sum of few of these."""
    return sorted({most, *(2**power for power in range(most.bit_length()))}, reverse=True)


def _call(builder: ir.IRBuilder, product: ir.Function, arguments: list[ir.Value], row: ir.Value) -> None:
    builder.call(product, [*arguments, row])


def _in_groups(
    builder: ir.IRBuilder, start: ir.Value, rows: ir.Value, size: int, call: Callable[[ir.Value], None]
) -> ir.Value:
    """Call for each group of `size` rows that there is from `start` on; return the first row that is left."""
    stop = builder.sub(rows, builder.srem(builder.sub(rows, start), LONG(size)))

    def one_group(row: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        call(row)
        return []

    loop(builder, start, stop, LONG(size), [], one_group)
    return stop


def _widen(builder: ir.IRBuilder, x: ir.Value, wide: ir.Value, inputs: ir.Value, dtypes: tuple[str, str]) -> None:
    """Write the numbers of a row as floats, in the order in which those of the weight will be read."""
    weight_dtype, x_dtype = dtypes

    def some(index: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        numbers = read(builder, place(builder, x, index, x_dtype), x_dtype, lanes=LANES)
        write(builder, in_order_of(builder, numbers, weight_dtype), place(builder, wide, index, "float32"), "float32")
        return []

    def single(index: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        number = read(builder, place(builder, x, index, x_dtype), x_dtype)
        write(builder, number, place(builder, wide, index, "float32"), "float32")
        return []

    whole = builder.and_(inputs, LONG(-LANES))
    loop(builder, LONG(0), whole, LONG(LANES), [], some)
    loop(builder, whole, inputs, LONG(1), [], single)


def _product(module: ir.Module, count: int, weight_dtype: str, x_dtype: str) -> ir.Function:
    """Write what multiplies `count` rows, from `row` on, by the rows of a weight from `first` to `stop`."""
    kind = ir.FunctionType(NOTHING, [POINTER] * 5 + [LONG] * 6)
    function = ir.Function(module, kind, f"multiply_{count}")
    function.linkage = "internal"
    weight, y, bias, scales, wide, inputs, outputs, stride, first, stop, row = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    rows = [builder.add(row, LONG(number)) for number in range(count)]
    xs = [place(builder, wide, builder.mul(x_row, inputs), "float32") for x_row in rows]
    ys = [place(builder, y, builder.mul(x_row, outputs), x_dtype) for x_row in rows]
    whole = builder.and_(inputs, LONG(-LANES))

    def one_output(output: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        factors_at = place(builder, weight, builder.mul(output, stride), weight_dtype)

        def some(index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            at = place(builder, factors_at, index, weight_dtype)
            for ahead in range(0, max(_LINE, LANES * BYTES[weight_dtype]), _LINE):
                prefetch(builder, place(builder, at, LONG((_AHEAD + ahead) // BYTES[weight_dtype]), weight_dtype))
            return added(index, sums, read_quickly(builder, at, weight_dtype), LANES)

        def single(index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            return added(index, sums, read(builder, place(builder, factors_at, index, weight_dtype), weight_dtype), 1)

        def added(index: ir.Value, sums: list[ir.Value], factors: ir.Value, lanes: int) -> list[ir.Value]:
            others = [read(builder, place(builder, at, index, "float32"), "float32", lanes=lanes) for at in xs]
            return [multiply_add(builder, factors, other, sum_) for other, sum_ in zip(others, sums, strict=True)]

        vectors = loop(builder, LONG(0), whole, LONG(LANES), [zeros(LANES)] * count, some)
        sums = loop(builder, whole, inputs, LONG(1), [added_up(builder, vector) for vector in vectors], single)
        sums = _if_there(builder, scales, output, x_dtype, sums, builder.fmul)
        sums = _if_there(builder, bias, output, x_dtype, sums, builder.fadd)
        for at, sum_ in zip(ys, sums, strict=True):
            write(builder, sum_, place(builder, at, output, x_dtype), x_dtype)
        return []

    loop(builder, first, stop, LONG(1), [], one_output)
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
