"""The model as it is: what every other form is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ...facts import Dtype
from ..nouns.job import Dynamic
from .flat import outputs_of
from .maker import Run


def available(dtype: Dtype, device: str) -> str:  # noqa: ARG001  # whether eager can run is the device verdict's matter
    """Eager is always there."""
    return ""


def build(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], folder: Path, *, dynamic: Dynamic) -> Run:  # noqa: ARG001
    """Return the model itself; nothing is written."""
    return lambda **given: outputs_of(model(**given))
