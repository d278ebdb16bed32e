"""Logits of several labels at once are judged label by label, by sigmoid."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DetrForObjectDetection,
    RTDetrForObjectDetection,
    SiglipModel,
)

from safe_dtype import drift_from, exceeds, measure_drift, record_outputs
from safe_dtype.verifying.decisions import decided_as

RANDOM = torch.Generator().manual_seed(0)
LOGITS = 3 * torch.randn(6, 4, generator=RANDOM)
BATCHES = [{"x": torch.arange(6)}]


class Says(nn.Module):
    """A model that gives these logits, with a config."""

    def __init__(self, logits: Tensor, problem_type: str | None = None) -> None:
        super().__init__()
        self.logits, self.config = logits, SimpleNamespace(problem_type=problem_type)

    def forward(self, **_: Any) -> dict[str, Tensor]:
        """Say them."""
        return {"logits": self.logits}


def bernoulli_kl(reference: Tensor, candidate: Tensor) -> Tensor:
    """Return KL of each label, as a textbook has it."""
    p, q = reference.double().sigmoid(), candidate.double().sigmoid()
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()


def test_each_label_for_itself() -> None:
    """Logits that all shift by the same change every label, and nothing of a softmax."""
    several, of_one = (Says(LOGITS, f"{name}_label_classification") for name in ("multi", "single"))
    drift = measure_drift(Says(LOGITS + 1), several, BATCHES)
    kl = bernoulli_kl(LOGITS, LOGITS + 1)
    assert (drift.kind, drift.positions) == ("labels", 24)
    assert drift.kl_mean == pytest.approx(float(kl.mean()), rel=1e-6)
    assert drift.top1_agreement == float(((LOGITS > 0) == (LOGITS + 1 > 0)).double().mean()) < 1
    assert "mean KL" in str(exceeds(drift, 0.02))
    assert exceeds(measure_drift(Says(LOGITS + 1), of_one, BATCHES), 0.02) is None
    assert exceeds(measure_drift(several, several, BATCHES), 0.0) is None


def test_a_label_beside_a_sure_one() -> None:
    """One label that is sure does not hide what becomes of the others."""
    logits = torch.tensor([[30.0, 1.0, -1.0, 0.5], [30.0, -1.0, 2.0, 0.1]])
    off = torch.tensor([[30.0, -1.0, 1.0, -0.5], [30.0, 1.0, -2.0, -0.1]])
    batches = [{"x": torch.arange(2)}]
    assert exceeds(measure_drift(Says(off), Says(logits, "multi_label_classification"), batches), 0.02)


def test_recorded(tmp_path: Path) -> None:
    """From a recording the figures are the same, of a candidate that says nothing of labels too."""
    reference = Says(LOGITS, "multi_label_classification")
    recording = record_outputs(reference, BATCHES, tmp_path)
    candidate = lambda **_: {"logits": LOGITS * 1.01}  # noqa: E731
    assert drift_from(recording, candidate, BATCHES) == measure_drift(candidate, reference, BATCHES)


@pytest.mark.parametrize(
    ("problem_type", "labels", "wanted"),
    [
        (None, None, None),
        (None, torch.zeros(6, dtype=torch.long), None),
        (None, torch.zeros(6, 4), "labels"),
        ("single_label_classification", torch.zeros(6, 4), None),
        ("multi_label_classification", None, "labels"),
        ("regression", torch.zeros(6, 4), "values"),
    ],
)
def test_who_says_so(problem_type: str | None, labels: Tensor | None, wanted: str | None) -> None:
    """The config, else the labels, as transformers reads them."""
    assert decided_as(Says(LOGITS, problem_type), labels, LOGITS) == wanted


def test_the_loss_says_so() -> None:
    """Detectors with a focal loss decide each class for itself, DETR one of all; SigLIP each pair."""
    config = SimpleNamespace(model_type="siglip")
    for model, wanted in (
        (SimpleNamespace(loss_type="RTDetrForObjectDetection"), "labels"),
        (SimpleNamespace(loss_type="ForObjectDetection"), None),
        (SimpleNamespace(loss_type="ForCausalLM"), None),
        (SimpleNamespace(loss_type=None, config=config), "labels"),
    ):
        assert decided_as(model, None, torch.zeros(1, 20, 4)) == wanted
    assert (RTDetrForObjectDetection.__name__, DetrForObjectDetection.__name__, SiglipModel.config_class.model_type) == (
        "RTDetrForObjectDetection", "DetrForObjectDetection", "siglip",
    )  # fmt: skip


def test_a_classifier_of_transformers() -> None:
    """The live config of a classifier with several labels is asked, trained in this process or loaded."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=32, num_labels=3, **sizes)).eval()
    ids = torch.randint(32, (4, 5), generator=RANDOM)
    model(input_ids=ids, labels=torch.zeros(4, 3))  # a step of training: transformers notes the problem
    drift = measure_drift(model, model, [{"input_ids": ids}])
    assert (drift.kind, drift.positions, drift.kl_mean) == ("labels", 12, 0.0)
