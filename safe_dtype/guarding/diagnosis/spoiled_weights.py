"""Weights that are no numbers themselves, as a merge that overflowed leaves them: no dtype mends what they give."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

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
        for part, tensor in _plain_parts(name, weight.detach()):
            if tensor.is_floating_point() and tensor.itemsize > 1 and not tensor.is_meta:
                count = int((~tensor.isfinite()).sum())
                if count:
                    yield part, count, tensor.numel()


def _plain_parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of torch's own class that a weight consists of, by name.

    Of quantized weights these are codes and scales: not each of their classes knows every operation. Of a weight that is
    shared among processes it is the share of this one, which nobody has to be asked for.
    """
    if type(tensor) is Tensor:
        yield name, tensor
    elif hasattr(tensor, "__tensor_flatten__"):
        for part in tensor.__tensor_flatten__()[0]:
            yield from _plain_parts(f"{name}.{part}", getattr(tensor, part))
