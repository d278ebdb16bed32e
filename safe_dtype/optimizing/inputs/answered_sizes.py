"""The ranges of sizes in which the original answers: where it raises, or gives NaN, a form must not answer instead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..nouns.job import Dynamic, Range
from ..nouns.record import Batch


def sizes_of_batches(dynamic: Dynamic, batches: Sequence[Batch], usable: Sequence[Batch]) -> Dynamic:
    """Return `dynamic` without the ends that no usable batch has; a dimension of one size is left out.

    A group norm with one value for each channel, for example, takes no batch of one row.

    Args:
        dynamic: The ranges that were declared.
        batches: All that were made, at the ends of every range too.
        usable: Those of them that the original answers.
    """
    if len(usable) == len(batches):
        return dynamic
    batch = dynamic.batch and _narrowed(
        dynamic.batch, _sizes(batches, tuple(batches[0].tensors), 0), _sizes(usable, tuple(batches[0].tensors), 0)
    )
    dims = {
        name: {
            dim: narrowed
            for dim, ends in by_dim.items()
            if (narrowed := _narrowed(ends, _sizes(batches, (name,), dim), _sizes(usable, (name,), dim)))
        }
        for name, by_dim in dynamic.dims.items()
    }
    return replace(dynamic, batch=batch, dims=dims)


def _sizes(batches: Iterable[Batch], names: tuple[str, ...], dim: int) -> set[int]:
    shapes = (batch.tensors[name]["shape"] for batch in batches for name in names if name in batch.tensors)
    return {shape[dim] for shape in shapes if -len(shape) <= dim < len(shape)}


def _narrowed(ends: Range, made: set[int], answered: set[int]) -> Range | None:
    """Return the ends, each moved to the nearest size that was answered where its own was not; None where one size is left."""
    low, high = ends
    if answered and min(answered) > min(made):
        low = min(answered)
    if answered and max(answered) < max(made):
        high = max(answered)
    return (low, high) if low < high else None
