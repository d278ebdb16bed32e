"""Only down, from where training begins."""

from __future__ import annotations

import pytest

from safe_dtype import BFLOAT16, FLOAT16, FLOAT32, INT8
from safe_dtype.training.ladder import rungs


@pytest.mark.parametrize(
    ("first", "ladder", "expected"),
    [
        pytest.param(BFLOAT16, (BFLOAT16, FLOAT16, FLOAT32), (BFLOAT16, FLOAT16, FLOAT32), id="from-the-top"),
        pytest.param(FLOAT16, (BFLOAT16, FLOAT16, FLOAT32), (FLOAT16, FLOAT32), id="never-up"),
        pytest.param(BFLOAT16, (BFLOAT16, FLOAT32), (BFLOAT16, FLOAT32), id="the-callers"),
    ],
)
def test_rungs(first: object, ladder: tuple[object, ...], expected: tuple[object, ...]) -> None:
    """What is left begins with the dtype of now."""
    assert rungs(first, ladder) == expected


def test_what_no_model_is_trained_in() -> None:
    """A ladder that cannot be climbed down says so."""
    with pytest.raises(ValueError, match="Nothing is trained in int8"):
        rungs(FLOAT16, (FLOAT16, INT8))
    with pytest.raises(ValueError, match="not in the ladder"):
        rungs(FLOAT16, (BFLOAT16, FLOAT32))
