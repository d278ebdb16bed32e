"""A step that runs again gets the inputs that it got at first."""

from __future__ import annotations

import pytest
import torch

from safe_dtype.errors import TrainingLoopError
from safe_dtype.training.trainer.step_inputs import StepInputs


def test_what_a_step_does_to_its_inputs() -> None:
    """Keys that it takes out and tensors that it writes to are there again, as often as it runs."""
    inputs = {"pixels": torch.full((2,), 255.0), "labels": torch.ones(2)}
    step_inputs = StepInputs(inputs, copies_tensors=True)
    for _ in range(3):
        assert inputs["pixels"].tolist() == [255, 255]
        inputs.pop("labels")
        inputs["pixels"].div_(255)
        inputs = step_inputs.again()
    assert step_inputs.are_changed


@pytest.mark.parametrize("copies_tensors", [False, True])
def test_what_lies_deeper(copies_tensors: bool) -> None:
    """Dicts and lists inside of the inputs are there again as well, and the tensors in them are looked at."""
    rows = torch.ones(2)
    inputs = {"chosen": {"labels": rows, "text": "a"}, "images": [{"pixels": (rows,)}, "b"], "seen": []}
    step_inputs = StepInputs(inputs, copies_tensors=copies_tensors)
    for _ in range(3):
        assert (inputs["chosen"]["text"], inputs["images"][1], inputs["seen"]) == ("a", "b", [])  # type: ignore[index]
        inputs["seen"].append(1)  # type: ignore[union-attr]
        inputs["chosen"].pop("labels")  # type: ignore[union-attr]
        inputs["images"].pop(0)  # type: ignore[union-attr, call-overload]
        inputs = step_inputs.again()
    rows.mul_(2)
    assert step_inputs.are_changed


def test_writes_without_a_copy() -> None:
    """Nothing is trained on inputs that are not the batch."""
    inputs = {"pixels": torch.ones(2), "features": torch.inference_mode()(torch.ones)(2)}
    step_inputs = StepInputs(inputs, copies_tensors=False)
    assert step_inputs.again()["pixels"] is inputs["pixels"]
    inputs["pixels"].mul_(2)
    with pytest.raises(TrainingLoopError, match="writes to its inputs"):
        step_inputs.again()
