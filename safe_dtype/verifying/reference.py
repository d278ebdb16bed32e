"""Outputs of a reference, checked on the way: they repeat, are finite, and depend on the input."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from hashlib import sha256
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..errors import DegenerateReferenceError, NothingToCompareError, UnsteadyReferenceError
from .output_kinds import MASKED
from .outputs import Batch, Model, Outputs, outputs_of
from .positions import Alignment, as_float64, chunks, counted, rows_that_count, tables

# Rows that differ by less than this, relative to the largest element, differ by float32's rounding alone.
_SAME = 1e-6


def checked_outputs(model: Model, batches: Iterable[Batch], alignment: Alignment) -> Iterator[tuple[Batch, Outputs]]:
    """Yield every batch with the reference's outputs on it.

    The first batch is run twice, and both main outputs must be equal bit for bit, and finite at the positions that count.
    Heads that are not equal (latents that were drawn, say) are left out; NaN in others is the model's own. Whether the reference is degenerate is known only at the end, when the iterator raises instead
    of ending: if each output is flat (all elements equal), or if all rows are equal although the inputs were not.

    Raises:
        UnsteadyReferenceError: If the two outputs differ.
        DegenerateReferenceError: If it is not finite, or degenerate.
        NothingToCompareError: If there are no batches.
    """
    watch = _Watch(alignment)
    drawn: set[str] = set()
    rest = iter(batches)
    first = next(rest, None)
    if first is None:
        raise NothingToCompareError("there are no batches", "pass one at least; a generator can be used only once")
    for batch in chain([first], rest):
        outputs = outputs_of(model, batch)
        if batch is first:
            drawn = _check_steady(outputs, outputs_of(model, batch))
        watch.see(outputs, batch)
        heads = {name: head for name, head in sorted(outputs.heads.items()) if name not in drawn}
        yield batch, replace(outputs, heads=heads)
    watch.check()


def digest(values: Iterable[tuple[str, Any]]) -> str:
    """Return a SHA-256 over names and values: tensors by dtype, shape and bits, anything else by its text."""
    sha = sha256()
    for name, value in sorted(values, key=lambda pair: pair[0]):
        sha.update(name.encode())
        if isinstance(value, Tensor):
            sha.update(f"{value.dtype}{tuple(value.shape)}".encode())
            sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            sha.update(str(value).encode())
    return sha.hexdigest()


class _Watch:
    """Checks the reference's rows, and keeps the first one to compare the others with."""

    def __init__(self, alignment: Alignment) -> None:
        self._alignment = alignment
        self._first: Tensor | None = None
        self._rows = 0
        self._flat = True
        self._varies = False
        self._inputs: set[str] = set()

    def see(self, outputs: Outputs, batch: Batch) -> None:
        mask = counted(outputs.main, batch, self._alignment)
        masks_are_legal = outputs.kind != "values"  # a logit of -inf, say
        for table in tables(outputs.main):
            for numbers in chunks(rows_that_count(table, mask), table.shape[1]):
                rows = as_float64(table, numbers)
                _check_finite(rows, masks_are_legal=masks_are_legal)
                self._note(torch.where(rows < MASKED, 0.0, rows))
        if len(self._inputs) < 2:
            self._inputs |= _distinct_inputs(outputs, batch)

    def check(self) -> None:
        if self._rows and self._flat:
            raise DegenerateReferenceError("the elements of each of its outputs are all equal")
        if self._rows > 1 and len(self._inputs) > 1 and not self._varies:
            raise DegenerateReferenceError("it gives one and the same output, whatever the input")

    def _note(self, rows: Tensor) -> None:
        self._rows += len(rows)
        if self._first is None:
            self._first = rows[0]
        if rows.shape[1] != len(self._first):
            self._varies = True
        elif not self._varies:
            self._varies = bool((rows - self._first).abs().max() > _SAME * self._first.abs().max())
        # One element a row is flat by nature.
        self._flat = self._flat and rows.shape[1] > 1 and bool((rows == rows[:, :1]).all())


def _check_finite(rows: Tensor, *, masks_are_legal: bool) -> None:
    fine = (rows < math.inf).all(1) & (rows > -math.inf).any(1) if masks_are_legal else rows.isfinite().all(1)
    if bad := int((~fine).sum()):
        raise DegenerateReferenceError(f"NaN or infinity stands in {bad} of {len(rows)} of its outputs")


def _check_steady(outputs: Outputs, repeated: Outputs) -> set[str]:
    """Return the names of the heads that differ.

    Raises:
        UnsteadyReferenceError: If the main outputs differ.
    """
    once, again = outputs.main, repeated.main
    if once.shape != again.shape:
        raise UnsteadyReferenceError(math.inf)
    # NaN is looked at later, and at positions that do not count it is legal.
    once, again = once.nan_to_num(nan=0.0), again.nan_to_num(nan=0.0)
    if not torch.equal(once, again):
        raise UnsteadyReferenceError(float((once.double() - again.double()).abs().max()))
    return {name for name, head in outputs.heads.items() if not _is_steady(head, repeated.heads.get(name))}


def _is_steady(once: Tensor, again: Tensor | None) -> bool:
    return again is not None and once.shape == again.shape and torch.equal(once.nan_to_num(), again.nan_to_num())


def _distinct_inputs(outputs: Outputs, batch: Batch) -> set[str]:
    """Return digests of up to a few inputs that differ: of items where an item gives one row, else of elements."""
    named = {
        name: value
        for name, value in batch.items()
        if isinstance(value, Tensor)
        and value.ndim
        and value.numel()
        and not any(word in name for word in ("mask", "labels", "position"))
    }
    if outputs.main.ndim > 2:
        # Elements: a decoder gives equal tokens equal rows, so some input must have two different ones.
        ends = {name: (value.min().item(), value.max().item()) for name, value in named.items()}
        return {f"{name} {end}" for name, pair in ends.items() if pair[0] != pair[1] for end in pair}
    if not outputs.main.ndim:  # one number for the whole batch
        return {digest(named.items())}
    items = range(len(outputs.main))
    return {digest((name, value[item]) for name, value in named.items() if len(value) == len(items)) for item in items}
