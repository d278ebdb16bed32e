"""What a form's module offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from ...facts import Dtype
from ..nouns.job import Dynamic

Run = Callable[..., dict[str, torch.Tensor]]  # takes the model's keyword inputs; outputs by name, as `outputs_of`


class Build(Protocol):
    """Makes the artifact in `folder`, which exists, and returns what runs it. Forms without a file write nothing."""

    def __call__(
        self, model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], folder: Path, *, dynamic: Dynamic
    ) -> Run:
        """Make it."""
        ...


@dataclass(frozen=True, slots=True)
class Maker:
    """How one form is made."""

    available: Callable[[Dtype, str], str]  # (dtype, device): why it cannot be tried here; empty where it can
    build: Build
    load: Callable[[Path], Run] | None = None  # from the folder, in any process; None where there is no file
