"""Matrices in panels, in LLVM's language: rows turned, so that they are the lanes of vectors, products of them, and back.

A panel of so many columns and lanes has the numbers of one column of all its rows side by side, in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llvmlite import ir

from .vectors import LONG, NOTHING, POINTER, WORD, constant, loop, multiply_add, place, read, spread, write

SIDE = 8  # of the squares that are turned


@dataclass(frozen=True)
class Panel:
    """Where a panel begins, or a lane of it, in memory; how many columns it has, and of how many lanes."""

    at: ir.Value
    width: ir.Value
    lanes: int

    def column(self, builder: ir.IRBuilder, number: ir.Value) -> ir.Value:
        """Return where a column is."""
        return place(builder, self.at, builder.mul(number, LONG(self.lanes)), "float32")


def tile_product(module: ir.Module, name: str, height: int, lanes: int, *, adds: bool) -> ir.Function:
    """Write a function that multiplies a matrix `a` by a panel `b` of shape (depth, lanes), into one of shape (rows, lanes).

    Its arguments are `a`, how far two rows of it and two numbers of a row are from one another, its rows, `b`, the depth,
    the result, and a vector that the result is multiplied by before where it `adds`.

    Args:
        module: Where it is written.
        name: What it is called.
        height: How many rows a tile has.
        lanes: How many columns; all of a panel's.
        adds: Whether products are added to the result.
    """
    kind = ir.FunctionType(NOTHING, [POINTER, LONG, LONG, LONG, POINTER, LONG, POINTER, POINTER])
    function = ir.Function(module, kind, name)
    function.linkage = "internal"
    a, row_step, step, rows, b, depth, result, factors = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    factor = read(builder, factors, "float32", lanes=lanes) if adds else None

    def tile(first: ir.Value, count: int) -> None:
        numbers = [builder.add(first, LONG(number)) for number in range(count)]
        begins = [place(builder, a, builder.mul(number, row_step), "float32") for number in numbers]
        results = [place(builder, result, builder.mul(number, LONG(lanes)), "float32") for number in numbers]
        if factor is None:
            before = [constant(0.0, lanes)] * count
        else:
            before = [builder.fmul(read(builder, at, "float32", lanes=lanes), factor) for at in results]

        def multiply(index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            vector = read(
                builder, place(builder, b, builder.mul(index, LONG(lanes)), "float32"), "float32", lanes=lanes
            )
            offset = builder.mul(index, step)
            others = [read(builder, place(builder, begin, offset, "float32"), "float32") for begin in begins]
            return [
                multiply_add(builder, spread(builder, other, lanes), vector, sum_)
                for other, sum_ in zip(others, sums, strict=True)
            ]

        for sum_, at in zip(loop(builder, LONG(0), depth, LONG(1), before, multiply), results, strict=True):
            write(builder, sum_, at, "float32")

    def tiles(count: int, start: ir.Value, stop: ir.Value) -> None:
        def turn(first: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            tile(first, count)
            return []

        loop(builder, start, stop, LONG(count), [], turn)

    whole = builder.sub(rows, builder.srem(rows, LONG(height)))
    tiles(height, LONG(0), whole)
    tiles(1, whole, rows)
    builder.ret_void()
    return function


def turn_rows(
    builder: ir.IRBuilder, rows: Sequence[ir.Value], panel: Panel, *, dtype: str, scale: ir.Value
) -> None:  # fmt: skip
    """Write `SIDE` rows of numbers in `dtype`, times a float, side by side into a panel."""

    def square(column: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        numbers = [read(builder, place(builder, row, column, dtype), dtype, lanes=SIDE) for row in rows]
        for number, vector in enumerate(_turned(builder, numbers)):
            at = panel.column(builder, builder.add(column, LONG(number)))
            write(builder, builder.fmul(vector, spread(builder, scale, SIDE)), at, "float32")
        return []

    def single(column: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        for number, row in enumerate(rows):
            scaled = builder.fmul(read(builder, place(builder, row, column, dtype), dtype), scale)
            at = place(builder, panel.column(builder, column), LONG(number), "float32")
            write(builder, scaled, at, "float32")
        return []

    whole = builder.and_(panel.width, LONG(-SIDE))
    loop(builder, LONG(0), whole, LONG(SIDE), [], square)
    loop(builder, whole, panel.width, LONG(1), [], single)


def turn_back(
    builder: ir.IRBuilder, panel: Panel, rows: Sequence[tuple[ir.Value, ir.Value]], *, dtype: str, scale: ir.Value
) -> None:  # fmt: skip
    """Write `SIDE` lanes of a panel, times a vector, as rows in `dtype`: each to its address, if it is there.

    Where the vector is zero, so is the row, whatever the panel has.
    """
    nothing = constant(0.0, SIDE)
    is_nothing = builder.fcmp_ordered("==", scale, nothing)

    def scaled(column: ir.Value) -> ir.Value:
        numbers = read(builder, panel.column(builder, column), "float32", lanes=SIDE)
        return builder.select(is_nothing, nothing, builder.fmul(numbers, scale))

    def square(column: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        vectors = [scaled(builder.add(column, LONG(number))) for number in range(SIDE)]
        for row, (at, is_there) in zip(_turned(builder, vectors), rows, strict=True):
            with builder.if_then(is_there):
                write(builder, row, place(builder, at, column, dtype), dtype)
        return []

    def single(column: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        vector = scaled(column)
        for number, (at, is_there) in enumerate(rows):
            with builder.if_then(is_there):
                write(builder, builder.extract_element(vector, WORD(number)), place(builder, at, column, dtype), dtype)
        return []

    whole = builder.and_(panel.width, LONG(-SIDE))
    loop(builder, LONG(0), whole, LONG(SIDE), [], square)
    loop(builder, whole, panel.width, LONG(1), [], single)


def _turned(builder: ir.IRBuilder, rows: Sequence[ir.Value]) -> list[ir.Value]:
    """Return the columns of a square of numbers: as many vectors as each has lanes, a power of two."""
    side, rows = len(rows), list(rows)
    half = side // 2
    for _ in range(half.bit_length()):  # each stage brings the highest digit of a row's number to the columns
        rows = [
            builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(WORD, side), _alternating(side, begin)))
            for pair in zip(rows[:half], rows[half:], strict=True)
            for begin in (0, half)
        ]
    return rows


def _alternating(side: int, begin: int) -> list[int]:
    """Return which numbers of two vectors come by turns, from one on."""
    return [place + side * of_second for place in range(begin, begin + side // 2) for of_second in (0, 1)]
