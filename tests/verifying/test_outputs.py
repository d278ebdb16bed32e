"""Which tensor of an answer is compared, and as what."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification
from verifying.fixed_answers import BATCH, LOGITS, saying

from safe_dtype import drift_from, exceeds, measure_drift, record_outputs
from safe_dtype.errors import IncomparableOutputsError


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


def test_regression_to_several_numbers(tmp_path: Path) -> None:
    """Logits that are no classes are compared by their numbers: all of them may be off by the same amount."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**sizes, vocab_size=20, num_labels=3, problem_type="regression")
    reference = BertForSequenceClassification(config).eval()
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        candidate.classifier.bias += 5
    recording = record_outputs(reference, [BATCH], tmp_path)
    for drift in (
        measure_drift(candidate, reference, [BATCH]),
        measure_drift(lambda **batch: candidate(**batch), reference, [BATCH]),
        measure_drift(candidate, lambda **batch: reference(**batch), [BATCH]),
        drift_from(recording, candidate, [BATCH]),
    ):
        assert drift.kind == "values"
        assert drift.rel_rms > 1
        assert "relative RMS" in str(exceeds(drift, 0.02))


def test_vocabulary_smaller_than_the_ids() -> None:
    """Where ids have no logit, as in token classification, there is no perplexity."""
    batch = {"input_ids": torch.arange(90, 98)[None]}
    assert measure_drift(saying(LOGITS), saying(LOGITS), [batch]).perplexity_ratio is None
