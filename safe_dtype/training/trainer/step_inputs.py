"""The inputs of one micro-batch, as they were when they came: a step that runs again gets them again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...errors import TrainingLoopError
from ..memory.batch_rows import tensors_in, with_tensors


class StepInputs:
    """What `training_step` is called with.

    A loss may take the labels out of the dict, or out of one inside of it, so these are copied each time. One that also
    writes to the tensors in them needs copies of those.
    """

    def __init__(self, inputs: Any, *, copies_tensors: bool) -> None:
        self._tensors = [tensor for tensor in tensors_in(inputs) if not tensor.is_inference()]
        self._versions = [tensor._version for tensor in self._tensors]
        self._has_copies = copies_tensors
        self._of_tensor: Callable[[torch.Tensor], torch.Tensor] = torch.clone if copies_tensors else _itself
        self._inputs = with_tensors(inputs, self._of_tensor)

    @property
    def are_changed(self) -> bool:
        """Whether a step has written to their tensors."""
        return any(t._version != version for t, version in zip(self._tensors, self._versions, strict=True))

    def again(self) -> Any:
        """Return them for another run.

        Raises:
            TrainingLoopError: If their tensors have changed, and nothing has copied them.
        """
        if not self._has_copies and self.are_changed:
            raise TrainingLoopError("the training step writes to its inputs, which it did not in earlier windows")
        return with_tensors(self._inputs, self._of_tensor)


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
