"""How a child process gets its model: written to a file, loaded in a dtype, changed by remedies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..nouns.form import Form, Run
from ..nouns.job import Job

_IMPLEMENTATIONS = {"experts_implementation": ("batched_mm", "grouped_mm"), "attn_implementation": ("sdpa", "eager")}


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
    """Load the job's model in the job's dtype, as it is, for inference and without a key-value cache.

    A file of `save_module` is unpickled, so it must be one that this library wrote itself.

    Raises:
        ValueError: If transformers has no such class.
    """
    dtype = getattr(torch, job.dtype.name)
    model: Any
    if job.model_class:
        import transformers

        model_class = getattr(transformers, job.model_class, None)
        if model_class is None:
            raise ValueError(f"transformers has no class {job.model_class}.")
        # from_pretrained keeps some modules in float32, as the model declares; .to(dtype) would cast them as well.
        model = model_class.from_pretrained(job.model, dtype=dtype)
        # A form computes one call. A cache among its outputs would be one more output that nobody uses.
        if getattr(model.config, "use_cache", False):
            model.config.use_cache = False
    else:
        model = torch.load(job.model, weights_only=False).to(dtype)
    apply_remedies(model, job.loaded_with)
    return model.eval().requires_grad_(requires_grad=False).to(job.device)  # type: ignore[no-any-return]  # torch.load gives Any


def load_artifact(form: Form, folder: Path, model_class: str) -> Run:
    """Load what `form` left in `folder`, made of a `model_class` of transformers (empty: of another module).

    Trust the folder first. A program of torch names the operators of its model's code (the experts of a mixture on the
    CPU), and a process has those only once that code is imported.

    Raises:
        ValueError: If the form leaves no file.
        Exception: What its runtime raises.
    """
    if form.load is None:
        raise ValueError(f"{form.name} leaves no file that could be loaded again")
    if model_class and form.of_one_torch:
        import transformers

        getattr(transformers, model_class, None)  # imports the module that defines it
    return form.load(folder)


def decides_by_sigmoid(job: Job) -> bool:
    """Whether the logits of the job's model stand for several labels, each decided for itself."""
    if not job.model_class:  # a module of the user's own: nobody says what its logits decide
        return False
    # Imported here, because it loads transformers: a child that runs a plain module starts sooner without.
    from ...verifying.decisions import class_decides_labels

    try:
        config = json.loads((job.model / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    return class_decides_labels(job.model_class, config if isinstance(config, dict) else {})


def settings_of(model: torch.nn.Module) -> tuple[str, ...]:
    """Return which implementations of experts and attention `model` uses, as remedies: saving a model loses them."""
    config = getattr(model, "config", None)
    settings = []
    for name in ("experts_implementation", "attn_implementation"):
        value = getattr(config, f"_{name}", None)
        settable = getattr(model, f"_can_set_{name}", None)  # transformers' own answer; without it nothing is tried
        if isinstance(value, str) and settable is not None and settable():
            settings.append(f"{name}={value}")
    return tuple(settings)


def remedies_for(model: torch.nn.Module) -> tuple[str, ...]:
    """Return the remedies to try on `model`: implementations that compute the same, and may capture whole."""
    now = settings_of(model)
    names = [one.partition("=")[0] for one in now]
    remedies = [f"{name}={value}" for name, values in _IMPLEMENTATIONS.items() if name in names for value in values]
    return tuple(one for one in remedies if one not in now)


def apply_remedies(model: Any, remedies: tuple[str, ...]) -> None:
    """Let `model` use the implementations of experts and attention that `remedies` name.

    Raises:
        ValueError: If a remedy is not known, or the model does not take it.
    """
    for remedy in remedies:
        name, _, value = remedy.partition("=")
        if name == "experts_implementation":
            model.set_experts_implementation(value)
        elif name == "attn_implementation":
            model.set_attn_implementation(value)
        else:
            raise ValueError(f"No remedy is called {remedy!r}.")
