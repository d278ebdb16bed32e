"""The product of few rows by weights as they were saved, in LLVM's language: each row of a weight is read once, in order."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from .functions_ir import silu
from .row_product import FIELDS, FUNCTION, OF_WEIGHT
from .task_ir import BEHIND, Task, function_of_tasks
from .vectors import (
    LANES,
    LONG,
    NOTHING,
    POINTER,
    added_up,
    each,
    in_order_of,
    loop,
    multiply_add,
    numbers_in,
    place,
    prefetch,
    read,
    read_group,
    read_quickly,
    rounded,
    write,
    zeros,
)

_LINE = 64  # bytes that memory is read in
_MOST_TOGETHER = 8  # rows
# Up to so many inputs, 4 rows of them are read from the nearest cache. With 2,048 to 3,072 tiles of several outputs take
# 0.5 to 0.7 of the time for 4 to 16 rows, with 1,024 up to 1.1 of it (an EPYC with AVX512, bfloat16, one thread).
_FEW_INPUTS = 1536
_GROUPED = 128  # numbers of int4 in a line
# Bytes of a weight that are asked for before they are needed; of few sums beside each other they are not: there a CPU sees by
# itself what is read next, and being asked is slower (bfloat16, 1 row: 1.3 times as long with AVX512, 1.7 with AVX2, on an
# EPYC). With more sums it is 0.7 to 1.0 of the time.
_AHEAD = 2048
_MOST_UNASKED = 2


def row_product_ir(weight: str, x: str, together: str) -> str:
    """Return the module with `FUNCTION`, for weights and an x in these dtypes; biases and scales are in that of x.

    Weights in int4 have a scale for each `LANES` inputs, whose number is a multiple of these; others one for each output.

    Each result is one thread's. Sums are floats, and rounded once. Where that makes numbers of a weight quicker to read,
    rows of x are written in pairs before, as they are. Of `together` rows sums stay in registers.
    """
    module = ir.Module("row_product")
    of_few, of_many = _tiles(int(together))
    products = {tile: _product(module, tile, weight, x) for tile in dict.fromkeys((*of_few, *of_many))}

    def some_outputs(builder: ir.IRBuilder, task: Task, first: ir.Value) -> None:
        of_weight = _weight_of(builder, task, first)
        first = builder.sub(first, of_weight["begin"])
        beyond = builder.add(first, task["at_a_time"])
        stop = builder.select(builder.icmp_signed("<", beyond, of_weight["outputs"]), beyond, of_weight["outputs"])
        arguments = [builder.inttoptr(of_weight[name], POINTER) for name in ("weight", "y", "bias", "scales")]
        of_all = builder.inttoptr(task["wide"], POINTER)
        own = place(builder, of_all, builder.mul(of_weight["row"], task["inputs"]), "float32")
        arguments += [own, task["inputs"], of_weight["outputs"], of_weight["stride"], first, stop]

        def multiply(tiles: list[_Tile]) -> None:
            row: ir.Value = LONG(0)
            for rows, outputs in tiles:
                call = functools.partial(_call, builder, products[rows, outputs], arguments)
                row = _in_groups(builder, row, of_weight["rows"], rows, call)

        if of_few == of_many:
            multiply(of_few)
            return
        with builder.if_else(builder.icmp_signed("<=", task["inputs"], LONG(_FEW_INPUTS))) as (few, many):
            with few:
                multiply(of_few)
            with many:
                multiply(of_many)

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


# A number of rows, and how many outputs of each are computed side by side, for which there is a product.
_Tile = tuple[int, int]


def _tiles(sums: int) -> tuple[list[_Tile], list[_Tile]]:
    """Return the tiles for few inputs, and those for many; the most rows first: any number is a sum of few of these.

    Of few inputs the numbers of x stay in the nearest cache, where it costs little to read them again for each output; of
    many they do not, and a tile of several outputs reads them once for all, as long as its sums stay in registers.
    """
    narrow = sorted(
        {min(_MOST_TOGETHER, sums), *(2**power for power in range(min(_MOST_TOGETHER, sums).bit_length()))}
    )
    wide = [(4, 3), (3, 4), (2, 4), (1, 1)]
    of_few = [(rows, 1) for rows in reversed(narrow)]
    return of_few, wide if all(rows * outputs <= sums for rows, outputs in wide) else of_few


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


def _product(module: ir.Module, tile: _Tile, weight_dtype: str, x_dtype: str) -> ir.Function:
    """Write what multiplies the rows of a tile, from `row` on, by the rows of a weight from `first` to `stop`."""
    count, at_once = tile
    kind = ir.FunctionType(NOTHING, [POINTER] * 5 + [LONG] * 6)
    function = ir.Function(module, kind, f"multiply_{count}_by_{at_once}")
    function.linkage = "internal"
    weight, y, bias, scales, wide, inputs, outputs, stride, first, stop, row = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    rows = [builder.add(row, LONG(number)) for number in range(count)]
    xs = [place(builder, wide, builder.mul(x_row, inputs), "float32") for x_row in rows]
    ys = [place(builder, y, builder.mul(x_row, outputs), x_dtype) for x_row in rows]

    def some_outputs(size: int) -> Callable[[ir.Value, list[ir.Value]], list[ir.Value]]:
        def body(output: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            numbers = [builder.add(output, LONG(number)) for number in range(size)]
            begins = [place(builder, weight, builder.mul(number, stride), weight_dtype) for number in numbers]
            # Beside one row what is behind it, else the rows of the next tile: those just behind are read already.
            ahead = None
            if count * size > _MOST_UNASKED:
                ahead = LONG(numbers_in(_AHEAD, weight_dtype)) if size == 1 else builder.mul(stride, LONG(size))
            grouped = [_scales_of(builder, scales, number, inputs, x_dtype) for number in numbers]
            sums = _sums(builder, _Rows(begins, weight_dtype, ahead, grouped, x_dtype), xs, inputs)
            for of_number, number in enumerate(numbers):
                results = sums[of_number::size]
                if weight_dtype != "int4":
                    results = _if_there(builder, scales, number, x_dtype, results, builder.fmul)
                results = _if_there(builder, bias, number, x_dtype, results, builder.fadd)
                for at, result in zip(ys, results, strict=True):
                    write(builder, result, place(builder, at, number, x_dtype), x_dtype)
            return []

        return body

    last = builder.sub(stop, builder.srem(builder.sub(stop, first), LONG(at_once)))
    loop(builder, first, last, LONG(at_once), [], some_outputs(at_once))
    if at_once > 1:
        loop(builder, last, stop, LONG(1), [], some_outputs(1))
    builder.ret_void()
    return function


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of a weight that are multiplied side by side."""

    begins: list[ir.Value]
    dtype: str
    ahead: ir.Value | None  # by how many numbers they are asked for before they are read; None: they are not
    scales: list[ir.Value]  # where those of each row begin
    dtype_of_scales: str

    def ask_for(self, builder: ir.IRBuilder, index: ir.Value) -> None:
        """Write what asks for the memory that is read later than the numbers from an index on: of `LANES`, or a whole line."""
        for begin in self.begins if self.ahead is not None else ():
            at = place(builder, begin, index, self.dtype)
            for numbers in range(0, max(numbers_in(_LINE, self.dtype), LANES), numbers_in(_LINE, self.dtype)):
                beyond = builder.add(self.ahead, LONG(numbers))
                prefetch(builder, place(builder, at, beyond, self.dtype))

    def factors(self, builder: ir.IRBuilder, index: ir.Value) -> list[ir.Value]:
        """Return `LANES` numbers of each, from an index on."""
        places = [place(builder, begin, index, self.dtype) for begin in self.begins]
        if self.dtype != "int4":
            return [read_quickly(builder, at, self.dtype) for at in places]
        group = builder.udiv(index, LONG(LANES))
        scales = (place(builder, of_row, group, self.dtype_of_scales) for of_row in self.scales)
        each_scale = [read(builder, at, self.dtype_of_scales) for at in scales]
        return [read_group(builder, at, scale) for at, scale in zip(places, each_scale, strict=True)]


def _scales_of(builder: ir.IRBuilder, scales: ir.Value, output: ir.Value, inputs: ir.Value, dtype: str) -> ir.Value:
    """Return where the scales of an output begin, where each group of its inputs has one."""
    return place(builder, scales, builder.mul(output, builder.udiv(inputs, LONG(LANES))), dtype)


def _sums(builder: ir.IRBuilder, weight: _Rows, xs: list[ir.Value], inputs: ir.Value) -> list[ir.Value]:
    """Return the sums of the products of each row of x by each of a weight: all of the first row of x, then of the next."""
    begins, dtype = weight.begins, weight.dtype

    def some(index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        weight.ask_for(builder, index)
        return added(index, sums, weight.factors(builder, index), LANES)

    def line_of_groups(index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        weight.ask_for(builder, index)
        for number in range(0, _GROUPED, LANES):
            sums = one_group(builder.add(index, LONG(number)), sums)
        return sums

    def one_group(index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        return added(index, sums, weight.factors(builder, index), LANES)

    def single(index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        places = [place(builder, begin, index, dtype) for begin in begins]
        return added(index, sums, [read(builder, at, dtype) for at in places], 1)

    def added(index: ir.Value, sums: list[ir.Value], factors: list[ir.Value], lanes: int) -> list[ir.Value]:
        others = [read(builder, place(builder, at, index, "float32"), "float32", lanes=lanes) for at in xs]
        pairs = [(factor, other) for other in others for factor in factors]
        return [multiply_add(builder, *pair, sum_) for pair, sum_ in zip(pairs, sums, strict=True)]

    vectors = [zeros(LANES)] * (len(begins) * len(xs))
    if dtype == "int4":
        whole = builder.and_(inputs, LONG(-_GROUPED))
        vectors = loop(builder, LONG(0), whole, LONG(_GROUPED), vectors, line_of_groups)
        vectors = loop(builder, whole, inputs, LONG(LANES), vectors, one_group)
        return [added_up(builder, vector) for vector in vectors]
    whole = builder.and_(inputs, LONG(-LANES))
    vectors = loop(builder, LONG(0), whole, LONG(LANES), vectors, some)
    return loop(builder, whole, inputs, LONG(1), [added_up(builder, vector) for vector in vectors], single)


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
