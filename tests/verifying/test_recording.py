"""One model after the other: the recording of a reference."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from verifying.by_the_book import tiny

from safe_dtype import measure_drift
from safe_dtype.errors import DegenerateReferenceError, IncomparableOutputsError
from safe_dtype.verifying import drift_from, random_batches, record_outputs

BATCHES: list[dict[str, Any]] = [
    one | {"output_hidden_states": True} for one in random_batches(96, tokens_per_batch=8, batches=3)
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_same_drift(dtype: torch.dtype, tmp_path: Path) -> None:
    """Both ways give the same drift, bit for bit, also of a reference in another dtype than float32."""
    reference, candidate = tiny("qwen3", dtype), tiny("qwen3", torch.float16)
    recording = record_outputs(reference, (one for one in BATCHES), tmp_path / "new" / "folder")
    assert drift_from(recording, candidate, BATCHES) == measure_drift(candidate, reference, BATCHES)


def test_files(tmp_path: Path) -> None:
    """A recording is one file a batch, with the logits and the last hidden state in float32."""
    record_outputs(tiny("qwen3", torch.bfloat16), BATCHES, tmp_path)
    files = sorted(tmp_path.iterdir())
    assert [one.name for one in files] == [f"batch-0000{number}.safetensors" for number in range(3)]
    held = load_file(files[0])
    assert {name: (one.dtype, tuple(one.shape)) for name, one in held.items()} == {
        "main": (torch.float32, (1, 8, 96)),
        "hidden": (torch.float32, (1, 8, 32)),
    }


def test_streams(tmp_path: Path) -> None:
    """A batch's outputs are on disk before the next batch is asked for, and only the latest are held in memory."""
    said: list[weakref.ref[torch.Tensor]] = []

    def model(input_ids: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        logits = input_ids[..., None] * torch.linspace(0.1, 0.2, 16)
        said.append(weakref.ref(logits))
        return {"logits": logits}

    def batches() -> Iterator[dict[str, Any]]:
        for number, batch in enumerate(BATCHES):
            assert len(list(tmp_path.iterdir())) == number
            yield batch
            gc.collect()
            assert sum(one() is not None for one in said) <= 1

    record_outputs(model, batches(), tmp_path)
    assert len(said) == len(BATCHES) + 1  # the first batch runs twice


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        pytest.param(BATCHES[:2], "2 batches came", id="too-few"),
        pytest.param([*BATCHES, BATCHES[0]], "batch 3 is none of the 3", id="too-many"),
        pytest.param(BATCHES[::-1], "not in its place", id="another-order"),
        pytest.param(random_batches(96, tokens_per_batch=8, seed=9), "batch 0 is none", id="others"),
        pytest.param([], "0 batches came", id="none"),
    ],
)
def test_other_batches(batches: list[Any], words: str, tmp_path: Path) -> None:
    """A candidate that is run on other batches than the reference is no candidate."""
    recording = record_outputs(tiny("qwen3"), BATCHES, tmp_path)
    with pytest.raises(IncomparableOutputsError, match=words):
        drift_from(recording, tiny("qwen3"), batches)


def test_the_reference_is_checked(tmp_path: Path) -> None:
    """What is no reference is not recorded as one."""
    model = tiny("qwen3")
    torch.nn.init.zeros_(model.lm_head.weight)
    with pytest.raises(DegenerateReferenceError):
        record_outputs(model, BATCHES, tmp_path)
