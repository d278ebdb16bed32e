"""Attempts in child processes, on small models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as tf
from optimizing.made import missing_here
from safetensors.torch import save_file

from safe_dtype.facts import FLOAT32, Dtype
from safe_dtype.optimizing.attempts.load_model import save_module
from safe_dtype.optimizing.attempts.runner import run_attempt
from safe_dtype.optimizing.nouns.job import Dynamic, Job
from safe_dtype.optimizing.nouns.record import FormAttempt


def job_of(model: torch.nn.Module, folder: Path, form: str = "eager") -> Job:
    """Return an untimed job on `model` and one batch `x` of shape (2, 16)."""
    save_module(model, folder / "model.pt")
    save_file({"x": torch.ones(2, 16)}, folder / "x.safetensors")
    return Job(folder / "model.pt", "", FLOAT32, form, folder / "attempt", folder / "x.safetensors", time=False)


def attempt(
    model: torch.nn.Module,
    batches: list[dict[str, torch.Tensor]],
    folder: Path,
    *,
    form: str,
    dtype: Dtype = FLOAT32,
    dynamic: Dynamic = Dynamic(batch=(1, 8)),  # noqa: B008  # frozen
) -> FormAttempt:
    """Try one form; the first batch is traced. "regional" compiles the submodule `first`."""
    files = []
    for number, batch in enumerate(batches):
        files.append(folder / f"{number}.safetensors")
        save_file(batch, files[-1])
    source, model_class = folder / "model", ""
    if isinstance(model, tf.PreTrainedModel):
        model.save_pretrained(source)
        model_class = type(model).__name__
    else:
        save_module(model, source)
    job = Job(
        source, model_class, dtype, form, folder / "attempt", files[0], tuple(files[1:]), dynamic=dynamic,
        regions=("first",),
    )  # fmt: skip
    return run_attempt(job, root=folder, seconds=300)


def skip_where_unavailable(form: str, dtype: Dtype = FLOAT32) -> None:
    """Skip the test with the form's own reason."""
    if reason := missing_here(form, dtype):
        pytest.skip(reason)
