"""What is asked of a probe, as a noun that can be sent to another process. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ...facts import Dtype, Timing, Verdict, VerdictKind, dtype_named


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """The cells to measure, in order."""

    device: str
    cells: tuple[tuple[Dtype, str], ...]  # (dtype, op)
    widths: tuple[tuple[int, int], ...]
    cell_seconds: float
    threads: int
    float32_precision: str = "highest"  # torch.get_float32_matmul_precision()
    ops_module: str = ""  # a module whose OPS a child measures instead of ours

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "cells": [[dtype.name, op] for dtype, op in self.cells]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ProbeRequest:
        """Read what `to_dict` wrote."""
        cells = tuple((dtype_named(name), op) for name, op in values["cells"])
        widths = tuple((out, width) for out, width in values["widths"])
        return cls(**{**values, "cells": cells, "widths": widths})


def verdict_to_dict(verdict: Verdict) -> dict[str, Any]:
    """Return plain values, the dtype and the kind by name."""
    return {**asdict(verdict), "dtype": verdict.dtype.name, "kind": verdict.kind.value}


def verdict_from_dict(values: Mapping[str, Any]) -> Verdict:
    """Read what `verdict_to_dict` wrote.

    Raises:
        KeyError, TypeError, ValueError: If it was something else.
    """
    timings = tuple(
        Timing(timing["rows"], (timing["shape"][0], timing["shape"][1]), timing["seconds"])
        for timing in values["timings"]
    )
    return Verdict(
        **{**values, "dtype": dtype_named(values["dtype"]), "kind": VerdictKind(values["kind"]), "timings": timings}
    )
