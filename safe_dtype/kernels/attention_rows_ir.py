"""Attention of many rows in LLVM's language: rows lie side by side in the lanes of vectors, as many as a tile is wide.

A part of the work is some rows of all heads that share keys. Its queries are turned, so that scores of one position are a
vector, and a softmax needs no sum across lanes. Keys and values come as floats, `BLOCK` positions at a time; what was added up
is scaled down where a later block has a larger score.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from .attention_rows import BLOCK, FIELDS, FUNCTION
from .functions_ir import exp
from .panels_ir import SIDE, Panel, tile_product, turn_back, turn_rows
from .task_ir import WORKER, Task, function_of_tasks
from .vectors import (
    BYTE,
    LONG,
    POINTER,
    WORD,
    as_float,
    constant,
    each,
    loop,
    place,
    read,
    write,
)

_INFINITY = float("inf")


@dataclass(frozen=True)
class _Part:
    """What one part of the work is about: values in LLVM's language."""

    builder: ir.IRBuilder
    task: Task
    dtype: str
    lanes: int
    batch: ir.Value
    head: ir.Value  # of those that are shared
    group: ir.Value  # how many heads share each
    start: ir.Value  # the first row
    panels_each: ir.Value  # panels of a head, of `lanes` rows each

    def pointer(self, name: str) -> ir.Value:
        """Return the address that a field holds."""
        return self.builder.inttoptr(self.task[name], POINTER)

    def at(self, name: str, first: ir.Value, second: ir.Value) -> ir.Value:
        """Return where a matrix of the operand of that name begins, whose strides the task holds."""
        builder, task = self.builder, self.task
        plural = {"key": "keys", "value": "values"}.get(name, name)
        offset = builder.add(builder.mul(first, task[f"{name}_batch"]), builder.mul(second, task[f"{name}_head"]))
        return place(builder, self.pointer(plural), offset, self.dtype)

    def place_of(self, panel: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return which head, of all, a panel is of, and its first row."""
        builder = self.builder
        head = builder.add(builder.mul(self.head, self.group), builder.sdiv(panel, self.panels_each))
        inside = builder.mul(builder.srem(panel, self.panels_each), LONG(self.lanes))
        return head, builder.add(self.start, inside)

    def row(self, first: ir.Value, number: ir.Value) -> ir.Value:
        """Return a row of a panel; where there is none any more, the last one."""
        builder = self.builder
        row = builder.add(first, number)
        last = builder.sub(self.task["rows"], LONG(1))
        return builder.select(builder.icmp_signed("<", row, last), row, last)


@dataclass(frozen=True)
class _Room:
    """What a worker has memory for, one behind the other; all are floats, but the mask, which is bytes."""

    queries: ir.Value  # (panels, width, lanes), scaled
    sums: ir.Value  # (panels, width of values, lanes)
    largest: ir.Value  # (panels, lanes)
    totals: ir.Value  # (panels, lanes)
    shrink: ir.Value  # (panels, lanes): what sums of blocks before are multiplied by
    keys: ir.Value  # (BLOCK, width)
    values: ir.Value  # (BLOCK, width of values)
    scores: ir.Value  # (BLOCK, lanes)
    seen: ir.Value  # (BLOCK, lanes)


def attention_rows_ir(dtype: str, tile_rows: str, lanes: str) -> str:
    """Return the module with `FUNCTION`, for operands in `dtype`; products are computed in tiles of that shape."""
    module = ir.Module("attention_rows")
    height, width = int(tile_rows), int(lanes)
    fresh = tile_product(module, "scores_of", height, width, adds=False)
    adding = tile_product(module, "add_values", height, width, adds=True)

    def one_part(builder: ir.IRBuilder, task: Task, number: ir.Value) -> None:
        _attend(_part(builder, task, number, dtype, width), fresh, adding)

    function_of_tasks(module, FUNCTION, FIELDS, one_part)
    return str(module)


def _attend(part: _Part, fresh: ir.Function, adding: ir.Function) -> None:
    builder, task, lanes = part.builder, part.task, part.lanes
    panels = builder.mul(part.group, part.panels_each)
    space = _rooms(part, panels)

    def begin(panel: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        _turn_queries(part, space, panel)
        for field, first in ((space.largest, -_INFINITY), (space.totals, 0.0)):
            write(builder, constant(first, lanes), _panel(part, field, panel, LONG(1)), "float32")

        def clear(column: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            sums = _panel(part, space.sums, panel, task["value_width"])
            write(builder, constant(0.0, lanes), _column(part, sums, column), "float32")
            return []

        loop(builder, LONG(0), task["value_width"], LONG(1), [], clear)
        return []

    loop(builder, LONG(0), panels, LONG(1), [], begin)
    stop = builder.add(part.start, task["at_once"])  # no causal row of the part sees any further
    is_shorter = builder.and_(
        builder.icmp_signed("!=", task["is_causal"], LONG(0)), builder.icmp_signed("<", stop, task["positions"])
    )
    positions = builder.select(is_shorter, stop, task["positions"])

    def block(first: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        rest = builder.sub(positions, first)
        count = builder.select(builder.icmp_signed("<", rest, LONG(BLOCK)), rest, LONG(BLOCK))
        _widen(part, "key", task["width"], first, count, space.keys)
        _widen(part, "value", task["value_width"], first, count, space.values)

        def panel(number: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            _add_block(part, space, number, (first, count), fresh, adding)
            return []

        loop(builder, LONG(0), panels, LONG(1), [], panel)
        return []

    loop(builder, LONG(0), positions, LONG(BLOCK), [], block)

    def end(panel: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        _write_result(part, space, panel)
        return []

    loop(builder, LONG(0), panels, LONG(1), [], end)


def _part(builder: ir.IRBuilder, task: Task, number: ir.Value, dtype: str, lanes: int) -> _Part:
    """Return what a part is about: the last rows first, which see the most where rows see what is before them."""
    ahead = builder.srem(number, task["chunks"])
    chunk = builder.sub(builder.sub(task["chunks"], LONG(1)), ahead)
    matrix = builder.sdiv(number, task["chunks"])
    return _Part(
        builder, task, dtype, lanes,
        batch=builder.sdiv(matrix, task["shared"]),
        head=builder.srem(matrix, task["shared"]),
        group=builder.sdiv(task["heads"], task["shared"]),
        start=builder.mul(chunk, task["at_once"]),
        panels_each=builder.sdiv(task["at_once"], LONG(lanes)),
    )  # fmt: skip


def _rooms(part: _Part, panels: ir.Value) -> _Room:
    builder, task = part.builder, part.task
    begin = builder.add(task["rooms"], builder.mul(task[WORKER], task["room_size"]))
    rows = builder.mul(panels, LONG(part.lanes))
    sizes = [
        builder.mul(rows, task["width"]), builder.mul(rows, task["value_width"]), rows, rows, rows,
        builder.mul(task["width"], LONG(BLOCK)), builder.mul(task["value_width"], LONG(BLOCK)), LONG(BLOCK * part.lanes),
    ]  # fmt: skip
    at = builder.inttoptr(begin, POINTER)
    places = [at]
    for size in sizes:
        at = place(builder, at, size, "float32")
        places.append(at)
    return _Room(*places)


def _panel(part: _Part, begin: ir.Value, panel: ir.Value, columns: ir.Value) -> ir.Value:
    """Return where a panel begins in what has so many vectors for each."""
    vectors = part.builder.mul(panel, columns)
    return _column(part, begin, vectors)


def _column(part: _Part, begin: ir.Value, column: ir.Value) -> ir.Value:
    return place(part.builder, begin, part.builder.mul(column, LONG(part.lanes)), "float32")


def _turn_queries(part: _Part, space: _Room, panel: ir.Value) -> None:
    """Write the rows of a panel side by side, as floats, scaled."""
    builder, task = part.builder, part.task
    head, first = part.place_of(panel)
    matrix = part.at("query", part.batch, head)
    to, scale = _panel(part, space.queries, panel, task["width"]), as_float(builder, task["scale"])

    def some(begin: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        numbers = [builder.add(begin, LONG(number)) for number in range(SIDE)]
        steps = [builder.mul(part.row(first, number), task["query_row"]) for number in numbers]
        rows = [place(builder, matrix, step, part.dtype) for step in steps]
        turn_rows(
            builder,
            rows,
            Panel(place(builder, to, begin, "float32"), task["width"], part.lanes),
            dtype=part.dtype,
            scale=scale,
        )
        return []

    loop(builder, LONG(0), LONG(part.lanes), LONG(SIDE), [], some)


def _widen(part: _Part, name: str, width: ir.Value, first: ir.Value, count: ir.Value, written: ir.Value) -> None:
    """Write keys or values of some positions as floats, one position behind the other."""
    builder, dtype = part.builder, part.dtype
    matrix = part.at(name, part.batch, part.head)

    def position(number: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        step = builder.mul(builder.add(first, number), part.task[f"{name}_step"])
        row, to = place(builder, matrix, step, dtype), place(builder, written, builder.mul(number, width), "float32")

        def some(column: ir.Value, lanes: int) -> None:
            numbers = read(builder, place(builder, row, column, dtype), dtype, lanes=lanes)
            write(builder, numbers, place(builder, to, column, "float32"), "float32")

        each(builder, width, some)
        return []

    loop(builder, LONG(0), count, LONG(1), [], position)


def _add_block(
    part: _Part, space: _Room, panel: ir.Value, positions: tuple[ir.Value, ir.Value], fresh: ir.Function,
    adding: ir.Function,
) -> None:  # fmt: skip
    """Write what adds the values of some positions to the sums of a panel, where its rows see any."""
    builder, task = part.builder, part.task
    count = positions[1]
    _, row = part.place_of(panel)
    sees_any, sees_all = _sight(part, space, row, positions)
    with builder.if_then(sees_any):
        queries = _panel(part, space.queries, panel, task["width"])
        width, value_width = task["width"], task["value_width"]
        shrink = _panel(part, space.shrink, panel, LONG(1))
        builder.call(fresh, [space.keys, width, LONG(1), count, queries, width, space.scores, shrink])
        with builder.if_then(builder.not_(sees_all)):
            _hide(part, space, row, positions)
        _soften(part, space, panel, count)
        sums = _panel(part, space.sums, panel, value_width)
        builder.call(adding, [space.values, LONG(1), value_width, value_width, space.scores, count, sums, shrink])


def _sight(
    part: _Part, space: _Room, row: ir.Value, positions: tuple[ir.Value, ir.Value]
) -> tuple[ir.Value, ir.Value]:
    """Return whether the rows of a panel, from `row` on, see any of the positions, and whether each sees all."""
    builder, task = part.builder, part.task
    first, count = positions
    has_mask = builder.icmp_signed("!=", task["seen"], LONG(0))
    without = builder.block
    with builder.if_then(has_mask):
        any_seen, all_seen = _look(part, space, row, positions)
        looked = builder.block
    seen = []
    for inside in (any_seen, all_seen):
        phi = builder.phi(inside.type)
        phi.add_incoming(inside, looked)
        phi.add_incoming(inside.type(1), without)
        seen.append(phi)
    last_row = builder.add(row, LONG(part.lanes - 1))
    is_all = builder.icmp_signed("==", task["is_causal"], LONG(0))
    before_last = builder.or_(is_all, builder.icmp_signed("<=", first, last_row))
    last = builder.sub(builder.add(first, count), LONG(1))
    before_all = builder.or_(is_all, builder.icmp_signed("<=", last, row))
    return builder.and_(seen[0], before_last), builder.and_(seen[1], before_all)


def _look(part: _Part, space: _Room, row: ir.Value, positions: tuple[ir.Value, ir.Value]) -> tuple[ir.Value, ir.Value]:
    """Copy the mask of the rows of a panel, turned; return whether any of it is seen, and whether all is."""
    builder, task = part.builder, part.task
    first, count = positions
    begin = builder.gep(part.pointer("seen"), [builder.mul(part.batch, task["seen_batch"])], source_etype=BYTE)

    def one_row(number: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
        offset = builder.add(builder.mul(part.row(row, number), task["seen_row"]), first)
        bytes_at = builder.gep(begin, [offset], source_etype=BYTE)

        def one_position(position: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            seen = builder.load(builder.gep(bytes_at, [position], source_etype=BYTE), typ=BYTE)
            at = builder.add(builder.mul(position, LONG(part.lanes)), number)
            builder.store(seen, builder.gep(space.seen, [at], source_etype=BYTE))
            return [builder.or_(carried[0], seen), builder.and_(carried[1], seen)]

        return loop(builder, LONG(0), count, LONG(1), carried, one_position)

    some, every = loop(builder, LONG(0), LONG(part.lanes), LONG(1), [BYTE(0), BYTE(1)], one_row)
    return builder.icmp_unsigned("!=", some, BYTE(0)), builder.icmp_unsigned("!=", every, BYTE(0))


def _hide(part: _Part, space: _Room, row: ir.Value, positions: tuple[ir.Value, ir.Value]) -> None:
    """Make the scores of what is not seen -Inf."""
    builder, task, lanes = part.builder, part.task, part.lanes
    first, count = positions
    bits = ir.VectorType(BYTE, lanes)
    numbers = ir.VectorType(WORD, lanes)
    is_causal = builder.icmp_signed("!=", task["is_causal"], LONG(0))

    def hide(position: ir.Value, is_seen: ir.Value) -> None:
        at = _column(part, space.scores, position)
        score = read(builder, at, "float32", lanes=lanes)
        write(builder, builder.select(is_seen, score, constant(-_INFINITY, lanes)), at, "float32")

    def causally(position: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        after = builder.trunc(builder.sub(builder.add(first, position), row), WORD)  # of the first row
        start = builder.insert_element(ir.Constant(numbers, ir.Undefined), after, WORD(0))
        beyond = builder.shuffle_vector(start, start, ir.Constant(numbers, [0] * lanes))
        hide(position, builder.icmp_signed("<=", beyond, ir.Constant(numbers, list(range(lanes)))))
        return []

    def by_mask(position: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        seen = builder.load(
            builder.gep(space.seen, [builder.mul(position, LONG(lanes))], source_etype=BYTE), align=1, typ=bits
        )
        hide(position, builder.icmp_unsigned("!=", seen, ir.Constant(bits, [0] * lanes)))
        return []

    with builder.if_else(is_causal) as (then, otherwise):
        with then:
            loop(builder, LONG(0), count, LONG(1), [], causally)
        with otherwise:
            loop(builder, LONG(0), count, LONG(1), [], by_mask)


def _soften(part: _Part, space: _Room, panel: ir.Value, count: ir.Value) -> None:
    """Replace scores by exp of what they are below the largest so far; note what sums of before are multiplied by."""
    builder, lanes = part.builder, part.lanes
    largest_at, totals_at, shrink_at = (
        _panel(part, begin, panel, LONG(1)) for begin in (space.largest, space.totals, space.shrink)
    )
    before = read(builder, largest_at, "float32", lanes=lanes)

    def compare(position: ir.Value, most: list[ir.Value]) -> list[ir.Value]:
        score = read(builder, _column(part, space.scores, position), "float32", lanes=lanes)
        return [builder.select(builder.fcmp_ordered(">", score, most[0]), score, most[0])]

    (largest,) = loop(builder, LONG(0), count, LONG(1), [before], compare)
    is_nothing = builder.fcmp_ordered("==", largest, constant(-_INFINITY, lanes))
    level = builder.select(is_nothing, constant(0.0, lanes), largest)  # exp of -Inf less -Inf would be NaN
    shrink = exp(builder, builder.fsub(before, level))

    def power(position: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
        at = _column(part, space.scores, position)
        number = exp(builder, builder.fsub(read(builder, at, "float32", lanes=lanes), level))
        write(builder, number, at, "float32")
        return [builder.fadd(totals[0], number)]

    totals = builder.fmul(read(builder, totals_at, "float32", lanes=lanes), shrink)
    (totals,) = loop(builder, LONG(0), count, LONG(1), [totals], power)
    for number, at in ((largest, largest_at), (totals, totals_at), (shrink, shrink_at)):
        write(builder, number, at, "float32")


def _write_result(part: _Part, space: _Room, panel: ir.Value) -> None:
    """Write the rows of a panel: sums by what exps add up to, rounded once; zero where that is nothing."""
    builder, task = part.builder, part.task
    head, first = part.place_of(panel)
    width = task["value_width"]
    sums, totals = _panel(part, space.sums, panel, width), _panel(part, space.totals, panel, LONG(1))
    before = builder.mul(part.batch, task["rows"])

    def some(start: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        rows = [builder.add(first, builder.add(start, LONG(number))) for number in range(SIDE)]
        lines = [builder.add(builder.mul(builder.add(before, row), task["heads"]), head) for row in rows]
        outputs = [
            (
                place(builder, part.pointer("output"), builder.mul(line, width), part.dtype),
                builder.icmp_signed("<", row, task["rows"]),
            )
            for row, line in zip(rows, lines, strict=True)
        ]
        some_sums, some_totals = (place(builder, at, start, "float32") for at in (sums, totals))
        numbers = read(builder, some_totals, "float32", lanes=SIDE)
        is_nothing = builder.fcmp_ordered("==", numbers, constant(0.0, SIDE))
        share = builder.select(is_nothing, constant(0.0, SIDE), builder.fdiv(constant(1.0, SIDE), numbers))
        turn_back(builder, Panel(some_sums, width, part.lanes), outputs, dtype=part.dtype, scale=share)
        return []

    loop(builder, LONG(0), LONG(part.lanes), LONG(SIDE), [], some)
