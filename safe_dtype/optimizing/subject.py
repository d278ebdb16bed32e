"""The model that a child process tries forms of: how it gets there, in which dtype, and with which remedies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .job import Job


def save_module(model: torch.nn.Module, path: Path) -> None:
    """Write `model` as a file that `load_subject` reads, in a process that can import its classes.

    Raises:
        ValueError: If a class of it is defined in `__main__`, where no other process finds it.
    """
    for module in model.modules():
        if type(module).__module__ == "__main__":
            raise ValueError(
                f"{type(module).__qualname__} is defined in the script that runs: another process cannot import it. "
                "Move the class to a module of its own, and import it."
            )
    torch.save(model, path)


def load_subject(job: Job) -> torch.nn.Module:
    """Load the job's model in the job's dtype, remedies applied, for inference.

    A file of `save_module` is unpickled, so it must be one that this library wrote itself.

    Raises:
        ValueError: If transformers has no such class, or a remedy is not known.
    """
    dtype = getattr(torch, job.dtype.name)
    model: Any
    if job.model_class:
        import transformers

        found = getattr(transformers, job.model_class, None)
        if found is None:
            raise ValueError(f"transformers has no class {job.model_class}.")
        # from_pretrained keeps in float32 what the model declares so; .to(dtype) does not, and is another model.
        model = found.from_pretrained(job.model, dtype=dtype)
    else:
        model = torch.load(job.model, weights_only=False).to(dtype)
    for remedy in job.remedies:
        _apply(remedy, model)
    return model.eval().requires_grad_(requires_grad=False).to(job.device)  # type: ignore[no-any-return]  # torch.load gives Any


def _apply(remedy: str, model: Any) -> None:
    name, _, value = remedy.partition("=")
    if name == "experts_implementation":
        model.set_experts_implementation(value)
    elif name == "attn_implementation":
        model.set_attn_implementation(value)
    elif remedy == "use_cache=False":
        model.config.use_cache = False
    else:
        raise ValueError(f"No remedy is called {remedy!r}.")
