"""The ranges of a form end where its original ends."""

from __future__ import annotations

import pytest

from safe_dtype.optimizing.inputs.answered_sizes import sizes_of_batches
from safe_dtype.optimizing.nouns.job import Dynamic
from safe_dtype.optimizing.nouns.record import Batch

DYNAMIC = Dynamic((1, 8), {"pixel_values": {2: (32, 96)}})


def batch(rows: int, height: int) -> Batch:
    """Return a batch of images of this height, with a number that belongs to all of them."""
    tensors = {"pixel_values": {"shape": [rows, 3, height, 64]}, "scale": {"shape": []}}
    return Batch("held out", f"{rows}x{height}.safetensors", tensors)


TRACED, SMALLEST, LARGEST, CROSSED = batch(2, 64), batch(1, 32), batch(8, 96), batch(2, 32)


@pytest.mark.parametrize(
    ("usable", "rows", "heights"),
    [
        pytest.param([TRACED, SMALLEST, LARGEST, CROSSED], (1, 8), (32, 96), id="all"),
        pytest.param([TRACED, LARGEST, CROSSED], (2, 8), (32, 96), id="no-single-row"),
        pytest.param([TRACED, LARGEST], (2, 8), (64, 96), id="nothing-small"),
        pytest.param([TRACED, SMALLEST, CROSSED], (1, 2), (32, 64), id="nothing-large"),
        pytest.param([TRACED], None, None, id="one-size"),
    ],
)
def test_ends(usable: list[Batch], rows: tuple[int, int] | None, heights: tuple[int, int] | None) -> None:
    """What the original does not answer at an end is left out up to the nearest size that it answers."""
    dynamic = sizes_of_batches(DYNAMIC, [TRACED, SMALLEST, LARGEST, CROSSED], usable)
    assert (dynamic.batch, dynamic.of("pixel_values").get(2)) == (rows, heights)


def test_nothing_was_made_there() -> None:
    """An end that no batch has, as between two patches, is left as it was declared."""
    declared = Dynamic((1, 8), {"pixel_values": {2: (30, 100)}})
    dynamic = sizes_of_batches(declared, [TRACED, SMALLEST, LARGEST, CROSSED], [TRACED, LARGEST, CROSSED])
    assert (dynamic.batch, dynamic.of("pixel_values")[2]) == ((2, 8), (30, 100))
