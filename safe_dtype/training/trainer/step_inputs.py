"""The inputs of one micro-batch, as they were when they came: a step that runs again gets them again."""

from __future__ import annotations

import copy
from typing import Any

import torch

from ...errors import TrainingLoopError


class StepInputs:
    """What `training_step` is called with.

    A loss may take the labels out of the dict, so that is copied each time. One that also writes to the tensors in it needs
    copies of them.
    """

    def __init__(self, inputs: Any, *, copies_tensors: bool) -> None:
        self._inputs = copy.copy(inputs)
        values = inputs.items() if hasattr(inputs, "keys") else ()
        self._tensors = [value for _, value in values if isinstance(value, torch.Tensor) and not value.is_inference()]
        self._versions = [tensor._version for tensor in self._tensors]
        self._copies: dict[str, torch.Tensor] = {}
        if copies_tensors:
            self._copies = {name: value.clone() for name, value in values if isinstance(value, torch.Tensor)}

    @property
    def are_changed(self) -> bool:
        """Whether a step has written to their tensors."""
        return any(t._version != version for t, version in zip(self._tensors, self._versions, strict=True))

    def again(self) -> Any:
        """Return them for another run.

        Raises:
            TrainingLoopError: If their tensors have changed, and nothing has copied them.
        """
        if not self._copies and self.are_changed:
            raise TrainingLoopError("the training step writes to its inputs, which it did not in earlier windows")
        inputs = copy.copy(self._inputs)
        for name, value in self._copies.items():
            inputs[name] = value.clone()
        return inputs
