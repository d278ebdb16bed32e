"""Weights that are no numbers themselves, as a merge that overflowed leaves them: no dtype mends what they give."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

_MOST_NAMED = 2


def spoiled_weights(module: nn.Module) -> str | None:
    """Return which weights of `module` hold NaN or Inf, and what to do about that; None where all are numbers."""
    counts = list(_counts(module))
    if not counts:
        return None
    named = ", ".join(f"{name} in {count:,} of {numel:,} numbers" for name, count, numel in counts[:_MOST_NAMED])
    more = f" and {len(counts) - _MOST_NAMED} more weights" if len(counts) > _MOST_NAMED else ""
    return (
        f"{named}{more} hold NaN or Inf. Next: load them again; where an adapter was merged, its product has overflowed "
        "this dtype: merge in float32 (`model.float()` before `merge_and_unload`), or not at all"
    )


def _counts(module: nn.Module) -> Iterator[tuple[str, int, int]]:
    """Yield name, how many are no numbers, and how many there are."""
    for name, weight in module.named_parameters():
        if weight.is_floating_point() and not weight.is_meta:
            count = int((~weight.detach().isfinite()).sum())
            if count:
                yield name, count, weight.numel()
