"""What a model's logits decide: one class among all, each label for itself, or nothing, being numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers.loss.loss_utils import LOSS_MAPPING

# Detectors learn each class for itself (focal loss), except those with one more class for "no object", as DETR has it.
_DETECTION = ("ObjectDetectionLoss", "SegmentationLoss")
_BY_SOFTMAX = ("ForObjectDetectionLoss", "ForSegmentationLoss", "ForSemanticSegmentationLoss")
# Pairs of an image and a text, each scored for itself: these models have no loss in that table.
_PAIRS_BY_SIGMOID = ("siglip", "siglip2", "owlvit", "owlv2")


def decided_as(model: Any, labels: Any, logits: Tensor) -> str | None:
    """Return "labels" or "values" where logits hold no choice of one class; None where they do, or nobody says.

    Asked in turn: `config.problem_type`, the loss that transformers has for the model's class, and the labels of the
    batch, which transformers reads in the same way: floating ones, as many as there are logits, mean several at once.

    Args:
        model: A module, or a function, which says nothing.
        labels: Of the batch, where it has any.
        logits: Shape (batch, ..., classes), two classes or more.
    """
    config = getattr(model, "config", None)
    problem = getattr(config, "problem_type", None)
    if problem == "regression":
        return "values"
    if problem == "multi_label_classification":
        return "labels"
    if _is_by_sigmoid(getattr(model, "loss_type", None)) or getattr(config, "model_type", None) in _PAIRS_BY_SIGMOID:
        return "labels"
    means_several = isinstance(labels, Tensor) and labels.is_floating_point() and labels.shape == logits.shape
    return "labels" if problem is None and means_several else None


def class_decides_labels(class_name: str, config: Mapping[str, Any]) -> bool:
    """Whether the logits of a class of transformers are "labels", from what lies in a folder: its name and its config."""
    # transformers looks for a loss in the name of the class, too; the longest is the one of the class itself.
    loss_type = max((name for name in LOSS_MAPPING if name in class_name), key=len, default=None)
    return (
        config.get("problem_type") == "multi_label_classification"
        or _is_by_sigmoid(loss_type)
        or config.get("model_type") in _PAIRS_BY_SIGMOID
    )


def _is_by_sigmoid(loss_type: object) -> bool:
    loss = getattr(LOSS_MAPPING.get(loss_type), "__name__", "") if isinstance(loss_type, str) else ""
    return loss.endswith(_DETECTION) and loss not in _BY_SOFTMAX
