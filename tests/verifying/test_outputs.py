"""Which tensor of an answer is compared, and as what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from safe_dtype import measure_drift
from safe_dtype.errors import IncomparableOutputsError

BATCH = {"input_ids": torch.arange(3, 11)[None]}


LOGITS = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(0))


def saying(logits: torch.Tensor) -> Callable[..., dict[str, torch.Tensor]]:
    """Return a model that says `logits`, whatever it is asked."""
    return lambda **_: {"logits": logits}


@pytest.mark.parametrize(
    ("candidate", "reference", "words"),
    [
        pytest.param(saying(LOGITS[..., :12]), saying(LOGITS), "(1, 8, 12)", id="vocabulary"),
        pytest.param(saying(LOGITS[:, :4]), saying(LOGITS), "(1, 4, 16)", id="positions"),
        pytest.param(saying(LOGITS[0]), saying(LOGITS), "classes", id="kind"),
        pytest.param(lambda **_: LOGITS, saying(LOGITS), "values", id="no-logits"),
        pytest.param(lambda **_: (LOGITS,), saying(LOGITS), "tuple", id="tuple"),
        pytest.param(saying(LOGITS[None, None]), saying(LOGITS), "(1, 1, 1, 8, 16)", id="dimensions"),
        pytest.param(lambda **_: {"boxes": LOGITS}, saying(LOGITS), "boxes", id="names"),
    ],
)
def test_incomparable(candidate: Any, reference: Any, words: str) -> None:
    """Outputs of different shapes or kinds are an error that names both."""
    with pytest.raises(IncomparableOutputsError) as raised:
        measure_drift(candidate, reference, [BATCH])
    assert words in str(raised.value)


def test_vocabulary_smaller_than_the_ids() -> None:
    """Where ids have no logit, as in token classification, there is no perplexity."""
    batch = {"input_ids": torch.arange(90, 98)[None]}
    assert measure_drift(saying(LOGITS), saying(LOGITS), [batch]).perplexity_ratio is None
