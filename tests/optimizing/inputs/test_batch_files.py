"""The batches of an optimization as files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from optimizing.form_models import Mlp
from safetensors.torch import load_file, save_file

from safe_dtype.errors import NotOptimizableError
from safe_dtype.optimizing.inputs.batch_files import write_batches
from safe_dtype.optimizing.model_source import ModelSource, source_of
from safe_dtype.optimizing.nouns.job import Dynamic

INPUTS = {"x": torch.linspace(-1, 1, 32).reshape(2, 16)}


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    """Return a module of the user's own."""
    return source_of(Mlp(), tmp_path)


def test_files(source: ModelSource, tmp_path: Path) -> None:
    """Each batch is a file by its role and number, the record has its shapes, and the user's are as they were."""
    mine = tmp_path / "mine.safetensors"
    save_file({"x": torch.ones(2, 16)}, mine)
    held_out = {"x": INPUTS["x"].flip(0)[:1]}  # a view: safetensors would refuse its memory
    folder = tmp_path / "inputs"
    batches, _ = write_batches(source, folder, inputs=INPUTS, held_out=[held_out], data=mine, dynamic=Dynamic((1, 4)))
    assert batches[0].file == "inputs/traced-0.safetensors"
    assert batches[0].tensors == {"x": {"shape": [2, 16], "dtype": "float32"}}
    assert [batch.role for batch in batches] == ["traced", *["held out"] * (len(batches) - 2), "user"]
    assert [batch.file for batch in batches[1:-1]] == [
        f"inputs/held-out-{number}.safetensors" for number in range(len(batches) - 2)
    ]
    assert torch.equal(load_file(tmp_path / batches[0].file)["x"], INPUTS["x"])
    assert torch.equal(load_file(tmp_path / batches[-2].file)["x"], held_out["x"])
    assert torch.equal(load_file(tmp_path / batches[-1].file)["x"], torch.ones(2, 16))
    assert {batch.tensors["x"]["shape"][0] for batch in batches} == {1, 2, 4}


def test_ranges_are_completed(source: ModelSource, tmp_path: Path) -> None:
    """A mask varies with the ids that a range was declared for."""
    text = {"input_ids": torch.ones(2, 5, dtype=torch.int64), "attention_mask": torch.ones(2, 5, dtype=torch.int64)}
    _, dynamic = write_batches(
        source, tmp_path / "inputs", inputs=text, dynamic=Dynamic(dims={"input_ids": {1: (2, 9)}})
    )
    assert dynamic.dims == {"input_ids": {1: (2, 9)}, "attention_mask": {1: (2, 9)}}


def test_unknown_inputs(source: ModelSource, tmp_path: Path) -> None:
    """Inputs of a module of the user's own must be passed; no folder is made without them."""
    with pytest.raises(NotOptimizableError, match="pass inputs="):
        write_batches(source, tmp_path / "inputs", dynamic=Dynamic())
    assert not (tmp_path / "inputs").exists()
