"""Drifts measured on devices: the figures of the CPU, wherever the two models lie, and no verdict where memory is short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from accelerator.rehearsal import Rehearsal
from transformers import AutoModelForCausalLM

from safe_dtype import compute_in, drift_from, measure_drift, record_outputs
from safe_dtype.verifying import random_batches

SOURCE = "examples/tiny-qwen3"
BATCHES = random_batches(2048, tokens_per_batch=48, batches=2)


def model_on(device_map: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Return the bundled model."""
    return AutoModelForCausalLM.from_pretrained(SOURCE, dtype=dtype, device_map=device_map)


def spread(rehearsal: Rehearsal, last: Any = None) -> dict[str, Any]:
    """Return a device map over two devices, the last block where it is asked to be."""
    first, second = rehearsal.device(0), rehearsal.device(1)
    places = {"model.embed_tokens": first, "model.rotary_emb": first, "model.norm": second, "lm_head": first}
    return places | {f"model.layers.{number}": (first, first, second, last or second)[number] for number in range(4)}


def test_wherever_the_models_lie(rehearsal: Rehearsal, tmp_path: Path) -> None:
    """On other devices, spread, or offloaded: a drift does not depend on it, nor on where the batches are."""
    places: list[Any] = ["cpu", rehearsal.device(), spread(rehearsal), spread(rehearsal, "cpu")]
    halves = [model_on(place, torch.float16) for place in places]
    halves.append(cpu_offload(model_on("cpu", torch.float16), rehearsal.device(1)))
    reference = model_on(rehearsal.device(1))
    batches = [{name: value.to(rehearsal.device()) for name, value in batch.items()} for batch in BATCHES]
    drifts = [measure_drift(half, reference, batches) for half in halves]
    recording = record_outputs(reference, batches, tmp_path)
    drifts.append(drift_from(recording, halves[1], BATCHES))
    assert len(set(drifts)) == 1
    assert 0 < drifts[0].kl_mean < 1e-4


def test_no_verdict_where_memory_ends(rehearsal: Rehearsal) -> None:
    """Torch's own error comes through."""
    reference, candidate = model_on("cpu"), model_on(rehearsal.device(), torch.float16)
    rehearsal.leave_free(50_000)
    with pytest.raises(torch.OutOfMemoryError):
        measure_drift(candidate, reference, BATCHES)


def test_bytes_of_logits(rehearsal: Rehearsal) -> None:
    """A device holds what one batch returns, and nothing of earlier ones."""
    model, reference = model_on(rehearsal.device(), torch.float16), model_on("cpu")
    peaks = []
    for count in (1, 4):
        rehearsal.backend.reset_peak_memory_stats()
        before = rehearsal.figure("allocated")
        measure_drift(model, reference, random_batches(2048, tokens_per_batch=48, batches=count + 1))
        peaks.append(rehearsal.figure("peak_allocated") - before)
    assert peaks[0] == peaks[1]


def test_products_in_another_dtype(rehearsal: Rehearsal) -> None:
    """compute_in and torch.autocast give on a device what they give on the CPU, and compute_in waits for nothing."""
    here, there = model_on("cpu", torch.bfloat16), model_on(spread(rehearsal), torch.bfloat16)
    ids = BATCHES[0]["input_ids"]
    with torch.inference_mode(), compute_in(torch.float32):
        with rehearsal.counting() as counting:
            result = there(ids.to(rehearsal.device())).logits
        torch.testing.assert_close(result.cpu(), here(ids).logits, rtol=0, atol=0)
    assert counting.counts.syncs == 0
    with torch.inference_mode(), torch.autocast(rehearsal.device().type, dtype=torch.float16):
        inner = compute_in(torch.float32)
        with inner:
            outer = there(ids.to(rehearsal.device())).logits
    torch.testing.assert_close(outer.cpu().float(), result.cpu().float(), rtol=0, atol=0.05)
