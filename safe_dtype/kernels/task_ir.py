"""A compiled function whose work threads share: they take parts of it from one counter until none is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from llvmlite import ir

from .threads import FIELDS
from .vectors import LONG, NOTHING, POINTER, WORD, loop

Task = Mapping[str, ir.Value]  # the fields of a task, as they are when it begins
BEHIND = "behind"  # its name for the address of what stands behind its fields
# A field that is 0 at first, of tasks whose threads have memory of their own; and the name of a thread's number, from 0 on.
BEGUN, WORKER = "begun", "worker"
# Writes a part of the work: that from this number on.
WritePart = Callable[[ir.IRBuilder, Task, ir.Value], None]
WriteAlone = Callable[[ir.IRBuilder, Task], None]


def function_of_tasks(
    module: ir.Module, name: str, fields: Sequence[str], write: WritePart, prepare: WriteAlone | None = None,
    finish: WriteAlone | None = None,
) -> None:  # fmt: skip
    """Write the function `name` of a task into a module: it returns when all of the work is done.

    Args:
        module: Where it is written.
        name: What it is called.
        fields: What a task holds behind `threads.FIELDS`, 8 bytes each.
        write: Writes what a thread does with a part, and is called once.
        prepare: Writes what is done before, by the calling thread alone.
        finish: Writes what is done afterwards, by the calling thread alone.
    """
    worker = ir.Function(module, ir.FunctionType(NOTHING, [POINTER]), f"{name}_worker")
    worker.linkage = "internal"
    builder = ir.IRBuilder(worker.append_basic_block())
    task = _read(builder, worker.args[0], fields)
    if BEGUN in fields:
        place = _place(builder, worker.args[0], [*FIELDS, *fields].index(BEGUN))
        task = {**task, WORKER: builder.atomic_rmw("add", place, LONG(1), "monotonic")}
    take, work, end = (worker.append_basic_block(label) for label in ("take", "work", "end"))
    builder.branch(take)
    builder.position_at_end(take)
    first = builder.atomic_rmw(
        "add", worker.args[0], task["at_a_time"], "monotonic"
    )  # the counter is what comes first
    builder.cbranch(builder.icmp_signed("<", first, task["end"]), work, end)
    builder.position_at_end(work)
    write(builder, task, first)
    builder.branch(take)
    builder.position_at_end(end)
    builder.ret_void()

    function = ir.Function(module, ir.FunctionType(NOTHING, [POINTER]), name)
    builder = ir.IRBuilder(function.append_basic_block())
    task = _read(builder, function.args[0], fields)
    if prepare is not None:
        prepare(builder, task)
    with builder.if_else(builder.icmp_signed("<=", task["threads"], LONG(1))) as (alone, together):
        with alone:
            builder.call(worker, [function.args[0]])
        with together:
            kind = ir.FunctionType(NOTHING, [POINTER, POINTER, WORD, WORD])
            parallel = builder.inttoptr(task["parallel"], kind.as_pointer())
            threads = builder.trunc(task["threads"], WORD)
            builder.call(parallel, [worker, function.args[0], threads, WORD(0)])
    if finish is not None:
        finish(builder, task)
    builder.ret_void()


def module_of_parts(name: str, function: str, fields: Sequence[str], write: WritePart) -> str:
    """Return a module with the function of a task whose parts are done one after the other, as a thread takes them.

    Args:
        name: Of the module.
        function: Of the function, as of `function_of_tasks`.
        fields: As of `function_of_tasks`.
        write: Writes what is done with one part.
    """
    module = ir.Module(name)

    def some(builder: ir.IRBuilder, task: Task, first: ir.Value) -> None:
        beyond = builder.add(first, task["at_a_time"])
        stop = builder.select(builder.icmp_signed("<", beyond, task["end"]), beyond, task["end"])

        def one_part(part: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            write(builder, task, part)
            return []

        loop(builder, first, stop, LONG(1), [], one_part)

    function_of_tasks(module, function, fields, some)
    return str(module)


def _read(builder: ir.IRBuilder, at: ir.Value, fields: Sequence[str]) -> dict[str, ir.Value]:
    names = [*FIELDS, *fields]
    places = {name: _place(builder, at, number) for number, name in enumerate(names)}
    task = {name: builder.load(place, typ=LONG) for name, place in places.items() if name != FIELDS[0]}
    return {**task, BEHIND: _place(builder, at, len(names))}


def _place(builder: ir.IRBuilder, at: ir.Value, number: int) -> ir.Value:
    return builder.gep(at, [LONG(number)], source_etype=LONG)
