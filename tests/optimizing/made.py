"""Folders of optimizations, made in this process: for tests of what loads them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from optimizing.zoo import ZOO
from safetensors.torch import load_file

from safe_dtype.facts import FLOAT32, Dtype
from safe_dtype.optimizing.attempts.load_model import save_module
from safe_dtype.optimizing.environment import environment, hashes
from safe_dtype.optimizing.forms import form_named
from safe_dtype.optimizing.graphs.flat import outputs_of
from safe_dtype.optimizing.nouns.form import BuildRequest, FormTarget
from safe_dtype.optimizing.nouns.job import Dynamic
from safe_dtype.optimizing.nouns.record import Batch, FormAttempt, Optimization, Outcome, Status
from safe_dtype.optimizing.nouns.record_file import write_record
from safe_dtype.optimizing.serving.optimized import load_optimized
from safe_dtype.optimizing.serving.trust import remember_made

TORCH = {"packages": {"torch": version("torch")}}
# Inductor imports what torch itself deprecates.
inductor = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
INPUTS = {"x": torch.linspace(-1, 1, 32).reshape(2, 16)}


class Positives(torch.nn.Module):
    """As long as its input has positive numbers: a trace has the length built in, and raises where it is another."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return them."""
        return x[x > 0].reshape(int((x > 0).sum()))


class Shifted(torch.nn.Module):
    """Has a branch that keeps its square root from negative inputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the root of x + 1, or of nothing."""
        return (x + 1).sqrt() if x.min() >= -1 else torch.zeros_like(x)


class Sum(torch.nn.Module):
    """One loop over memory, where a compiler makes its own kernel."""

    def forward(self, x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        """Return 2 x + 1 + i."""
        return x * 2 + 1 + i


class Averaged(torch.nn.Module):
    """Has a branch for rows that show nothing."""

    def forward(self, mask: torch.Tensor) -> torch.Tensor:
        """Return the weight of each position: zero where it is hidden, and all the same where all are."""
        shown = mask.sum(-1, keepdim=True)
        weights = mask / shown.clamp(min=1)
        return weights if shown.min() > 0 else weights.where(shown > 0, torch.full_like(weights, 1 / mask.shape[-1]))


class Logarithm(torch.nn.Module):
    """Infinite where its input is 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return log |x|."""
        return x.abs().log()


def zoo_folder(name: str, tmp_path: Path) -> Path:
    """Return a folder with a model of the zoo."""
    folder = tmp_path / name
    ZOO[name].model().save_pretrained(folder)
    return folder


def agrees(out: Path, record: Optimization) -> None:
    """Compare the result, loaded in this process, with the original in its dtype, on every batch."""
    made = load_optimized(out)
    for batch in record.batches:
        inputs = load_file(out / batch.file)
        answer, eager = made(**inputs), made.eager()
        dtype = getattr(torch, made.dtype.name)
        with torch.no_grad():
            expected = eager(**{n: one.to(dtype) if one.is_floating_point() else one for n, one in inputs.items()})
        logits = expected if isinstance(expected, torch.Tensor) else next(iter(expected.values()))
        first = next(iter(answer.values()))
        assert torch.allclose(first.float(), logits.float(), atol=0.05 * float(logits.abs().max()), rtol=0)
    assert not made.fell_back


def keep_original(model: torch.nn.Module, out: Path) -> str:
    """Write OUT/original as the optimizer does, and return the class of a model of transformers."""
    if isinstance(model, tf.PreTrainedModel):
        model.save_pretrained(out / "original")
        return type(model).__name__
    (out / "original").mkdir()
    save_module(model, out / "original/model.pt")
    return ""


def record_of(
    attempt: FormAttempt, model_class: str, inputs: Mapping[str, torch.Tensor], dynamic: Mapping[str, Any]
) -> Optimization:
    """Return the record of an optimization with one attempt."""
    traced = {
        name: {"shape": list(one.shape), "dtype": str(one.dtype).removeprefix("torch.")}
        for name, one in inputs.items()
    }
    return Optimization(
        "tiny", model_class, "cpu", "auto", "auto", "float32", original="original" if model_class else "original/model.pt",
        environment=TORCH, batches=(Batch("traced", "inputs/traced.safetensors", traced),), dynamic=dynamic,
        attempts=(attempt,), chosen=0, status=Status.REACHED, why="the fastest",
    )  # fmt: skip


def optimized(
    model: torch.nn.Module,
    out: Path,
    form: str,
    *,
    dtype: Dtype = FLOAT32,
    inputs: Mapping[str, torch.Tensor] = INPUTS,
    batch: tuple[int, int] | None = (1, 8),
    **more: Any,
) -> Optimization:
    """Make the folder of an optimization in this process, which is quicker than in a child, and return its record."""
    model.eval()
    out.mkdir(exist_ok=True)
    model_class = keep_original(model, out)
    files: dict[str, str] = {}
    artifact = out / "attempts/00/artifact"
    artifact.mkdir(parents=True)
    if form_named(form).leaves_a_file:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of what torch deprecates; the children log it
            twin = copy.deepcopy(model).to(getattr(torch, dtype.name))
            form_named(form).build(BuildRequest(twin, dict(inputs), artifact, Dynamic(batch)))
        files = hashes(artifact)
    attempt = FormAttempt(
        form, dtype, Outcome.VERIFIED, artifact="attempts/00/artifact" if files else "", artifact_files=files, **more
    )
    found = record_of(attempt, model_class, inputs, {"batch": list(batch) if batch else None, "dims": {}})
    found = replace(found, files=hashes(out / "original"))
    write_record(found, out)
    remember_made(out, found)
    return found


def missing_here(form: str, dtype: Dtype = FLOAT32) -> str:
    """Return what a form needs to be made on this CPU, and has not."""
    return form_named(form).missing_to_build(FormTarget(environment(), "cpu", dtype))


def expected(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what eager answers."""
    with torch.no_grad():
        return outputs_of(model.eval()(**inputs))
