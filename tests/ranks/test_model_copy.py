"""The dtype in which the copies of all ranks meet: where nobody has failed, and down the ladder only."""

from __future__ import annotations

from itertools import permutations

import pytest

from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, Dtype
from safe_dtype.guarding import FailureKind
from safe_dtype.ranks.model_copy import ModelCopy, agreed_dtype, failure_of

DOWN = ("bfloat16", "float16", "float32")


def copy(rank: int, now: str, *left: str, ladder: tuple[str, ...] = DOWN) -> ModelCopy:
    """Return the copy of one rank."""
    return ModelCopy(rank, "Llama 12", now, left, ladder, "nonfinite" if left else "", "NaN" if left else "")


@pytest.mark.parametrize(
    ("copies", "agreed"),
    [
        pytest.param([copy(0, "bfloat16"), copy(1, "bfloat16")], BFLOAT16, id="all-is-well"),
        pytest.param([copy(0, "bfloat16"), copy(1, "float16", "bfloat16")], FLOAT16, id="one-has-failed"),
        pytest.param(
            [copy(0, "bfloat16"), copy(1, "float16", "bfloat16"), copy(2, "float32", "bfloat16", "float16")],
            FLOAT32,
            id="two-have-failed",
        ),
        pytest.param([copy(0, "bfloat16"), copy(1, "float32", "bfloat16")], FLOAT32, id="nobody-goes-up-again"),
        pytest.param([copy(0, "bfloat16"), copy(1, "float16")], FLOAT16, id="they-began-in-different-dtypes"),
        pytest.param(
            [copy(0, "float16", ladder=("float32",)), copy(1, "float32", "float16", ladder=("float32",))],
            FLOAT32,
            id="the-first-dtype-need-not-be-on-the-ladder",
        ),
        pytest.param(
            [copy(0, "float16", "bfloat16"), copy(1, "bfloat16"), copy(2, "float32", "float16")], FLOAT32,
            id="two-at-the-same-time",
        ),
    ],
)  # fmt: skip
def test_agreed_dtype(copies: list[ModelCopy], agreed: Dtype) -> None:
    """It is the same in whatever order the copies are heard of."""
    assert {agreed_dtype(order) for order in permutations(copies)} == {agreed}


def test_a_copy_is_read_by_other_ranks() -> None:
    """What is written into the store is read as it was."""
    failed = copy(3, "float16", "bfloat16")
    assert ModelCopy.from_text(failed.as_text()) == failed


def test_the_failure_that_others_hear_of() -> None:
    """It is that of the lowest rank that has failed in the dtype which a copy leaves, and names it."""
    copies = [copy(2, "float16", "bfloat16"), copy(1, "float16", "bfloat16"), copy(0, "bfloat16")]
    failure = failure_of(copies, "bfloat16")
    assert (failure.kind, failure.message, failure.dtype) == (FailureKind.NONFINITE, "rank 1: NaN", BFLOAT16)
    assert failure_of(copies, "float16").message == "another rank is in another dtype"
