"""Compiled functions called one after the other without Python in between.

A product reads its weights through the caches of a core, and drives out of them what Python works with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..machine_code import Kernel
from ..threads import FIELDS, head, run_packed
from .call import At, KernelCall

FUNCTION = "run_program"
_KERNEL = Kernel(FUNCTION, "programs.program_ir", "programs", lambda: ())


class Program:
    """Calls that are made one after the other, each when all of the one before is done.

    Args:
        calls: In their order.
        threads: How many share the work of a call that has more than one part.

    Raises:
        RuntimeError: If there is no code for this machine: see `can_run`.
    """

    __slots__ = ("_address", "_places", "_values")

    def __init__(self, calls: Sequence[KernelCall], threads: int) -> None:
        self._address = _KERNEL.address()
        self._values: list[int] = [len(calls)]
        self._places: list[tuple[int, str, int]] = []  # where a number stands, what it is named, what is added to it
        for call in calls:
            self._values += (call.address, len(FIELDS) + len(call.fields), *head(call.at_a_time, call.end, threads))
            for field in call.fields:
                if isinstance(field, At):
                    self._places.append((len(self._values), field.name, field.offset))
                self._values.append(0 if isinstance(field, At) else field)

    def run(self, begins: Mapping[str, int]) -> None:
        """Make the calls, with what all names stand for that their fields have."""
        values = self._values.copy()
        for place, name, offset in self._places:
            values[place] = begins[name] + offset
        run_packed(self._address, values)


def can_run() -> bool:
    """Whether there are programs on this machine."""
    return _KERNEL.has()
