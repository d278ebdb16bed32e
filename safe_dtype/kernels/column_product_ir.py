"""The product of few rows by weights with a row for each input, in LLVM's language: these rows are read once, in order.

Each thread takes some inputs, and adds their numbers times what they are multiplied by onto a row of sums for each row of x.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from .column_product import FIELDS, FUNCTION, INPUTS_AT_A_TIME, OF_WEIGHT
from .task_ir import BEHIND, Task, function_of_tasks
from .vectors import (
    BYTES,
    LONG,
    NOTHING,
    POINTER,
    each,
    loop,
    multiply_add,
    place,
    prefetch,
    read,
    spread,
    write,
    zeros,
)

_LINE = 64  # bytes that memory is read in


def column_product_ir(dtype: str, height: str, lanes: str) -> str:
    """Return the module with `FUNCTION`, for weights, an x and biases in this dtype.

    Of `height` inputs `lanes` numbers each are in registers, while they are multiplied by all rows. Sums of a part of the
    inputs are added up in the order of these, whatever the registers; those of the parts in their order, and rounded once.
    """
    module = ir.Module("column_product")
    some = _chunk(module, dtype, int(height), int(lanes))

    def one_chunk(builder: ir.IRBuilder, task: Task, part: ir.Value) -> None:
        number = builder.sdiv(part, task["chunks"])
        chunk = builder.srem(part, task["chunks"])
        field = _fields(builder, task, number)
        first = builder.mul(chunk, LONG(INPUTS_AT_A_TIME))
        left = builder.sub(task["inputs"], first)
        count = builder.select(builder.icmp_signed("<", left, LONG(INPUTS_AT_A_TIME)), left, LONG(INPUTS_AT_A_TIME))
        weight = place(builder, _pointer(builder, field["weight"]), builder.mul(first, field["stride"]), dtype)
        begin = builder.add(builder.mul(field["row"], task["inputs"]), first)
        xs = place(builder, _pointer(builder, task["wide"]), begin, "float32")
        # Sums of one part are those of all rows, side by side.
        begin = builder.mul(chunk, builder.mul(field["rows"], field["outputs"]))
        sums = place(builder, _pointer(builder, field["sums"]), begin, "float32")
        builder.call(some, [weight, field["stride"], count, xs, task["inputs"], field["rows"], sums, field["outputs"]])

    def widen(builder: ir.IRBuilder, task: Task) -> None:
        x, wide = (_pointer(builder, task[name]) for name in ("x", "wide"))

        def numbers(index: ir.Value, count: int) -> None:
            vector = read(builder, place(builder, x, index, dtype), dtype, lanes=count)
            write(builder, vector, place(builder, wide, index, "float32"), "float32")

        each(builder, task["numbers"], numbers)

    def add_up(builder: ir.IRBuilder, task: Task) -> None:
        def one_weight(number: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            _add_up(builder, task, _fields(builder, task, number), dtype)
            return []

        loop(builder, LONG(0), task["weights"], LONG(1), [], one_weight)

    function_of_tasks(module, FUNCTION, FIELDS, one_chunk, widen, add_up)
    return str(module)


def _pointer(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return builder.inttoptr(address, POINTER)


def _fields(builder: ir.IRBuilder, task: Task, number: ir.Value) -> dict[str, ir.Value]:
    """Return what the task holds for a weight."""
    first = builder.mul(number, LONG(len(OF_WEIGHT)))
    return {
        name: builder.load(builder.gep(task[BEHIND], [builder.add(first, LONG(at))], source_etype=LONG), typ=LONG)
        for at, name in enumerate(OF_WEIGHT)
    }


def _chunk(module: ir.Module, dtype: str, height: int, lanes: int) -> ir.Function:
    """Write what sets sums to the products of `count` inputs: `sums[row, output] = xs[row, :count] @ weight[:count]`."""
    kind = ir.FunctionType(NOTHING, [POINTER, LONG, LONG, POINTER, LONG, LONG, POINTER, LONG])
    function = ir.Function(module, kind, "multiply_chunk")
    function.linkage = "internal"
    weight, stride, count, xs, inputs, rows, sums, outputs = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    each(
        builder,
        builder.mul(rows, outputs),
        lambda index, width: write(builder, zeros(width), place(builder, sums, index, "float32"), "float32"),
    )

    def inputs_at_once(size: int) -> Callable[[ir.Value, list[ir.Value]], list[ir.Value]]:
        def body(first: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            numbers = [builder.add(first, LONG(number)) for number in range(size)]
            lines = [place(builder, weight, builder.mul(number, stride), dtype) for number in numbers]
            factors = place(builder, xs, first, "float32")
            whole = builder.and_(outputs, LONG(-lanes))
            loop(builder, LONG(0), whole, LONG(lanes), [], outputs_at_once(lines, factors, lanes))
            loop(builder, whole, outputs, LONG(1), [], outputs_at_once(lines, factors, 1))
            return []

        return body

    def outputs_at_once(
        lines: list[ir.Value], factors: ir.Value, width: int
    ) -> Callable[[ir.Value, list[ir.Value]], list[ir.Value]]:
        def body(output: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            places = [place(builder, line, output, dtype) for line in lines]
            if width > 1:
                # The same numbers of the next inputs: what reads ahead by itself ends with a page.
                ahead = builder.mul(LONG(len(lines)), stride)
                for at in places:
                    for line in range(0, width, _LINE // BYTES[dtype]):
                        prefetch(builder, place(builder, at, builder.add(ahead, LONG(line)), dtype))
            vectors = [read(builder, at, dtype, lanes=width) for at in places]

            def one_row(row: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
                own = place(builder, factors, builder.mul(row, inputs), "float32")
                at = place(builder, sums, builder.add(builder.mul(row, outputs), output), "float32")
                sum_ = read(builder, at, "float32", lanes=width)
                for number, vector in enumerate(vectors):
                    factor = read(builder, place(builder, own, LONG(number), "float32"), "float32")
                    sum_ = multiply_add(builder, vector, spread(builder, factor, width), sum_)
                write(builder, sum_, at, "float32")
                return []

            loop(builder, LONG(0), rows, LONG(1), [], one_row)
            return []

        return body

    whole = builder.sub(count, builder.srem(count, LONG(height)))
    loop(builder, LONG(0), whole, LONG(height), [], inputs_at_once(height))
    loop(builder, whole, count, LONG(1), [], inputs_at_once(1))
    builder.ret_void()
    return function


def _add_up(builder: ir.IRBuilder, task: Task, field: dict[str, ir.Value], dtype: str) -> None:
    """Add the sums of all parts up, then the bias, and write what that is in `dtype`."""
    sums, y, bias = (_pointer(builder, field[name]) for name in ("sums", "y", "bias"))
    outputs = field["outputs"]
    of_chunk = builder.mul(field["rows"], outputs)
    has_bias = builder.icmp_unsigned("!=", bias, ir.Constant(POINTER, None))

    def one_row(row: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        begin = builder.mul(row, outputs)

        def some(output: ir.Value, width: int) -> None:
            index = builder.add(begin, output)

            def add(chunk: ir.Value, total: list[ir.Value]) -> list[ir.Value]:
                at = place(builder, sums, builder.add(builder.mul(chunk, of_chunk), index), "float32")
                return [builder.fadd(total[0], read(builder, at, "float32", lanes=width))]

            (total,) = loop(builder, LONG(0), task["chunks"], LONG(1), [zeros(width)], add)
            before = builder.block
            with builder.if_then(has_bias):
                number = read(builder, place(builder, bias, output, dtype), dtype, lanes=width)
                with_bias = builder.fadd(total, number)
                inside = builder.block
            result = builder.phi(total.type)
            result.add_incoming(total, before)
            result.add_incoming(with_bias, inside)
            write(builder, result, place(builder, y, index, dtype), dtype)

        each(builder, outputs, some)
        return []

    loop(builder, LONG(0), field["rows"], LONG(1), [], one_row)
