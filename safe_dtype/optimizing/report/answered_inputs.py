"""Which inputs an optimized form answers, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...rendering.markdown import code
from ..forms import find_form
from ..nouns.record import Optimization

_RANGE_OPTIONS = {"pixel_values": "--size", "input_ids": "--length"}  # of the command, for the sizes of an input


def sizes_answered(record: Optimization) -> str:
    """Return for which inputs the form is used, where it is a file; empty where it is compiled again for others."""
    form = find_form(record.winner.form) if record.winner else None
    tensors = traced_tensors(record)
    if form is None or not form.leaves_a_file or not tensors:
        return ""
    name = next((name for name in _RANGE_OPTIONS if name in tensors), next(iter(tensors)))
    shape = " x ".join(map(str, tensors[name].get("shape") or ()))
    varying = "".join(f", {text}" for text in ranges(record))
    options = f"{_RANGE_OPTIONS[name]}, --batch" if name in _RANGE_OPTIONS else "--batch"
    return f"answers {name} of {shape}{varying}; other sizes go to eager: {options}"


def ranges(record: Optimization) -> Iterator[str]:
    """Give each dimension that may vary, with its ends."""
    if batch := record.dynamic.get("batch"):
        yield f"the batch from {batch[0]} to {batch[1]}"
    for name, dims in dict(record.dynamic.get("dims") or {}).items():
        yield from (f"dimension {dim} of {code(name)} from {low} to {high}" for dim, (low, high) in dims.items())


def traced_tensors(record: Optimization) -> Mapping[str, Mapping[str, Any]]:
    """Return the shape and the dtype of each input of the traced batch, by name."""
    return next((batch.tensors for batch in record.batches if batch.role == "traced"), {})
