"""The rows of a micro-batch, whatever it is made of: in parts where it is known which row has what, else whole, with the reason."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BatchEncoding, BatchFeature

from safe_dtype.training.memory.batch_rows import first_rows, parts_of, rows_of, tensors_in, why_whole

ROWS = torch.arange(4)
BATCHES = {
    "flat": {"a": ROWS, "b": ROWS[:, None]},
    "dict in a dict": {"text": {"a": ROWS, "mask": {"b": ROWS * 2}}, "labels": ROWS},
    "tuple": {"states": (ROWS, ROWS + 1), "labels": ROWS},
    "list of dicts": {"views": [{"a": ROWS}, {"a": ROWS + 1}], "labels": ROWS},
    "BatchEncoding": BatchEncoding({"a": ROWS, "b": ROWS}),
    "BatchFeature in a dict": {"pixels": BatchFeature({"a": ROWS}), "labels": ROWS},
    "numbers and texts of all rows": {
        "a": ROWS,
        "scale": 2.0,
        "task": "copy",
        "weight": torch.tensor(3.0),
        "none": None,
    },
    "by place": {0: ROWS, "labels": ROWS},
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("parts", [2, 3, 4])
def test_in_parts(name: str, parts: int) -> None:
    """Put together, the parts are the whole, each of the kind that it was; nothing is left out and nothing comes twice."""
    batch = BATCHES[name]
    made = parts_of(batch, parts)
    assert why_whole(batch) == ""
    assert rows_of(batch) == 4
    assert [rows_of(part) for part in made] == {2: [2, 2], 3: [2, 2], 4: [1] * 4}[parts]
    assert all(type(part) is type(batch) for part in made)
    columns = zip(*(tensors_in(part) for part in made), strict=True)
    for whole, column in zip(tensors_in(batch), columns, strict=True):
        assert torch.equal(torch.cat(column) if whole.dim() else column[0], whole)


def test_the_first_rows() -> None:
    """Of every tensor with rows; the batch itself stays."""
    first = first_rows(BATCHES["dict in a dict"], 3)
    assert [tensor.tolist() for tensor in tensors_in(first)] == [[0, 1, 2], [0, 2, 4], [0, 1, 2]]
    assert rows_of(BATCHES["dict in a dict"]) == 4


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        pytest.param({"a": ROWS, "positions": ROWS[None]}, "its tensors have 1 to 4 rows", id="positions-of-all"),
        pytest.param(
            {"a": ROWS, "b": {"c": torch.ones(6)}}, "its tensors have 4 to 6 rows", id="pictures-of-unlike-texts"
        ),
        pytest.param({"a": ROWS[:1]}, "it has one row", id="one-row"),
        pytest.param({"a": 1}, "it has no tensors with rows", id="no-tensor"),
        pytest.param({"a": ROWS, "texts": ["x"] * 3}, "'texts' has a str in it of which nobody knows", id="texts"),
        pytest.param({"a": ROWS, "b": [{"c": ROWS}] * 4}, "'b' is a list of which nobody knows", id="as-many-as-rows"),
        pytest.param({"a": ROWS, "b": {"c": SimpleNamespace(d=ROWS)}}, "'c' is a SimpleNamespace", id="object"),
    ],
)
def test_what_stays_whole(batch: Any, reason: str) -> None:
    """What may have something for each row, or for all, is not taken apart by a guess."""
    assert why_whole(batch).startswith(reason)
