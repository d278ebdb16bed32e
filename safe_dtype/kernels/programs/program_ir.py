"""Calls of compiled functions one after the other, in LLVM's language."""

from __future__ import annotations

from llvmlite import ir

from ..vectors import LONG, NOTHING, POINTER, loop
from .kernel_program import FUNCTION

_HEAD = 2  # what stands before a task: the address of its function, and how many fields it has


def program_ir() -> str:
    """Return the module with `FUNCTION`, of a pointer to the number of tasks and to the tasks, each behind its head."""
    module = ir.Module("program")
    function = ir.Function(module, ir.FunctionType(NOTHING, [POINTER]), FUNCTION)
    builder = ir.IRBuilder(function.append_basic_block())
    (program,) = function.args

    def word(number: ir.Value) -> ir.Value:
        return builder.gep(program, [number], source_etype=LONG)

    def call(_: ir.Value, latest: list[ir.Value]) -> list[ir.Value]:
        (at,) = latest
        kind = ir.FunctionType(NOTHING, [POINTER])
        address = builder.load(word(at), typ=LONG)
        fields = builder.load(word(builder.add(at, LONG(1))), typ=LONG)
        task = builder.add(at, LONG(_HEAD))
        builder.call(builder.inttoptr(address, kind.as_pointer()), [word(task)])
        return [builder.add(task, fields)]

    loop(builder, LONG(0), builder.load(program, typ=LONG), LONG(1), [LONG(1)], call)
    builder.ret_void()
    return str(module)
