"""optimize on devices: times wait for them, and what cannot be made or used there says why before it is tried."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerator.rehearsal import Rehearsal
from guarding.generators import BOTH_ROWS, generator

from safe_dtype.optimizing.attempts.stopwatch import timed
from safe_dtype.optimizing.environment import environment
from safe_dtype.optimizing.forms import form_named, torchscript
from safe_dtype.optimizing.graphs.flat import outputs_of
from safe_dtype.optimizing.nouns.form import BuildRequest, FormTarget
from safe_dtype.optimizing.nouns.job import Dynamic


def test_times_wait_for_the_device(rehearsal: Rehearsal) -> None:
    """Before the first reading of the clock, and before the last."""
    numbers = torch.ones(2, device=rehearsal.device(1))
    with rehearsal.counting(1) as counting:
        timed(lambda: numbers + numbers, str(rehearsal.device(1)))
    assert counting.counts.syncs == 2


def test_record_names_the_devices(rehearsal: Rehearsal) -> None:
    """Of any backend, with their bytes."""
    rehearsal.limit(2**30)
    assert [one["bytes"] for one in environment()["gpus"]] == [2**30, 2**30]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_stays_on_its_device(rehearsal: Rehearsal, tmp_path: Path) -> None:
    """A trace of a language model, which indexes its mask, answers there as eager, also when it was loaded."""
    model, inputs = generator().to("musa:1"), {name: one.to("musa:1") for name, one in BOTH_ROWS.items()}
    with torch.no_grad():
        expected = outputs_of(model(**inputs))
        runs = torchscript.FORM.build(BuildRequest(model, inputs, tmp_path, Dynamic())), torchscript.load(tmp_path)
        for run in runs:
            logits = run(**inputs)["logits"]
            assert logits.device == torch.device("musa:1")
            torch.testing.assert_close(logits, expected["logits"])


@pytest.mark.parametrize(
    ("form", "missing"),
    [
        ("aoti", "inductor has no code for it"),
        ("compile", "inductor has no code for it"),
        ("regional", "inductor has no code for it"),
        ("onnx", "no provider of onnxruntime for it is known"),
        ("export", ""),
        ("eager", ""),
    ],
)
def test_what_is_not_tried(rehearsal: Rehearsal, form: str, missing: str) -> None:
    """Forms without code for the device are left out with the reason."""
    reason = form_named(form).lacks_to_build(FormTarget(environment(), str(rehearsal.device())))
    assert reason.endswith(missing)
    assert bool(reason) == bool(missing)
