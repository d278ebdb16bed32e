"""The inputs of one micro-batch, as they were when they came: a step that runs again gets them again."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...errors import TrainingLoopError

_SEQUENCES = (list, tuple)


class StepInputs:
    """What `training_step` is called with.

    A loss may take the labels out of the dict, or out of one inside of it, so these are copied each time. One that also
    writes to the tensors in them needs copies of those.
    """

    def __init__(self, inputs: Any, *, copies_tensors: bool) -> None:
        self._tensors = [tensor for tensor in _tensors_in(inputs) if not tensor.is_inference()]
        self._versions = [tensor._version for tensor in self._tensors]
        self._has_copies = copies_tensors
        self._of_tensor: Callable[[torch.Tensor], torch.Tensor] = torch.clone if copies_tensors else _itself
        self._inputs = _copied(inputs, self._of_tensor)

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
        return _copied(self._inputs, self._of_tensor)


def _copied(value: Any, of_tensor: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return a copy of `value`, and of all dicts, lists and tuples in it, with what `of_tensor` returns for each tensor."""
    if isinstance(value, torch.Tensor):
        return of_tensor(value)
    if type(value) in _SEQUENCES:
        return type(value)(_copied(inner, of_tensor) if _is_copied(inner) else inner for inner in value)
    copied = copy.copy(value)
    for name, inner in value.items() if hasattr(value, "keys") else ():
        if _is_copied(inner):
            copied[name] = _copied(inner, of_tensor)
    return copied


def _is_copied(value: Any) -> bool:
    """Whether it is a tensor, or what may hold some; anything else in the inputs is handed on as it is."""
    return isinstance(value, (torch.Tensor, dict, UserDict)) or type(value) in _SEQUENCES


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
        return
    parts = value if type(value) in _SEQUENCES else value.values() if hasattr(value, "keys") else ()
    for part in filter(_is_copied, parts):
        yield from _tensors_in(part)


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
