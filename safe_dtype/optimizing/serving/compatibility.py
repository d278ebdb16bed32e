"""Whether a form that was made before can be used now: on this machine, and for these inputs.

This is checked before a form is loaded or run, because native code does not check its inputs. An AOTInductor package
that is called with int32 in place of int64, with inputs of different batch sizes or with other strides returns wrong
numbers, or what lies in memory behind its inputs (measured with torch 2.13).
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

import torch

from ...devices.processor import cpu_capability
from ..environment import environment
from ..forms import find_form
from ..inputs.hidden_rows import hides_a_row
from ..nouns.form import Form, FormTarget
from ..nouns.job import Dynamic
from ..nouns.record import EAGER, FormAttempt, Optimization


def misfit(record: Optimization, attempt: FormAttempt, device: str) -> str:
    """Return why the form of `attempt` cannot be used on `device` of this machine; empty where it can."""
    if attempt.form == EAGER:
        return ""
    form = find_form(attempt.form)
    if form is None:
        return "no package that is installed here brings this form"
    if form.leaves_a_file and _numbered(device) != _numbered(record.device):  # its programs name the device
        return f"it was made for {record.device}, and is to run on {device}"
    differences = _differences(record.environment, form, device)
    if difference := next((f"it was made with {name} {made}, here is {here}" for name, made, here in differences), ""):
        return difference
    missing = form.missing(FormTarget(environment(), device, attempt.dtype))
    return f"it needs {missing}" if missing else ""


def unlike(inputs: Mapping[str, Any], traced: Mapping[str, Mapping[str, Any]], dynamic: Dynamic) -> str:
    """Return why a form cannot take a call; empty where it can, or where the record does not say.

    Args:
        inputs: Those of the call, floats in the form's dtype already.
        traced: Shape and dtype of each input that the form was traced with.
        dynamic: Which dimensions may vary, and how far.
    """
    if not traced:
        return ""
    if inputs.keys() != traced.keys():
        return f"it takes {', '.join(traced)}; the call has {', '.join(inputs) or 'none'}"
    reasons = (_other(name, inputs[name], facts, dynamic) for name, facts in traced.items())
    return next(filter(None, reasons), "") or (_torn_batch(inputs, traced) if dynamic.batch else "")


def showing_masks(record: Optimization) -> frozenset[str]:
    """Return the masks that show something of every row in all verified batches; none where the record does not say."""
    facts = [(name, tensor.get("hides_a_row")) for batch in record.batches for name, tensor in batch.tensors.items()]
    return frozenset(name for name, hides in facts if hides is False) - {name for name, hides in facts if hides}


def hidden_row(inputs: Mapping[str, Any], showing: frozenset[str]) -> str:
    """Return which of the masks `showing` hides a row whole, as none verified did; empty where all show something."""
    names = (name for name in inputs if name in showing and isinstance(inputs[name], torch.Tensor))
    name = next((name for name in names if hides_a_row(name, inputs[name])), "")
    return f"a row of {name} hides everything" if name else ""


def traced_inputs(record: Optimization) -> Mapping[str, Mapping[str, Any]]:
    """Return shape and dtype of each input of the traced batch; empty where the record does not say."""
    return next((batch.tensors for batch in record.batches if batch.role == "traced"), {})


def _numbered(device: str) -> tuple[str, int]:
    place = torch.device(device)
    return place.type, place.index or 0


def dynamic_of(record: Optimization) -> Dynamic:
    """Return which dimensions may vary."""
    batch, dims = record.dynamic.get("batch"), record.dynamic.get("dims") or {}
    return Dynamic(
        _ends(batch) if batch else None,
        {name: {int(dim): _ends(ends) for dim, ends in by_dim.items()} for name, by_dim in dims.items()},
    )


def _other(name: str, tensor: Any, facts: Mapping[str, Any], dynamic: Dynamic) -> str:
    """Return how one input differs from the traced one; empty where it may differ so."""
    if not isinstance(tensor, torch.Tensor):
        return f"{name} is no tensor"
    dtype, made_for = str(tensor.dtype).removeprefix("torch."), str(facts["dtype"]).removeprefix("torch.")
    # Floats are in the form's dtype, whatever the batch was saved in.
    if dtype != made_for and not (tensor.is_floating_point() and "float" in made_for):
        return f"{name} is {dtype}, and not {made_for}"
    shape, ranges = tuple(facts["shape"]), dynamic.of(name)
    if len(shape) != tensor.dim():
        return f"{name} has {tensor.dim()} dimensions, and not {len(shape)}"
    for dim, (size, traced) in enumerate(zip(tensor.shape, shape, strict=True)):
        low, high = ranges.get(dim, (traced, traced))
        if not low <= size <= high:
            wanted = f"{low}..{high}" if low < high else str(low)
            return f"dimension {dim} of {name} is {size}, and not {wanted}"
    return ""


def _torn_batch(inputs: Mapping[str, Any], traced: Mapping[str, Mapping[str, Any]]) -> str:
    """Return which inputs have different batch sizes; empty where none have."""
    sizes: dict[int, tuple[str, int]] = {}  # by the traced size
    for name, facts in traced.items():
        if facts["shape"]:
            first, size = sizes.setdefault(facts["shape"][0], (name, len(inputs[name])))
            if len(inputs[name]) != size:
                return f"{first} is a batch of {size}, and {name} one of {len(inputs[name])}"
    return ""


def _differences(made_in: Mapping[str, Any], form: Form, device: str) -> Iterator[tuple[str, str, str]]:
    """Yield (what, then, here) for all that a file of `form` depends on and that differs. Unrecorded facts are skipped."""
    facts = list(_torch_of(made_in)) if form.of_one_torch else []
    facts += _machine_of(made_in, device) if form.of_one_machine else []
    yield from ((name, str(made), here) for name, made, here in facts if made is not None and str(made) != here)


def _torch_of(made_in: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    yield "torch", (made_in.get("packages") or {}).get("torch"), version("torch")


def _machine_of(made_in: Mapping[str, Any], device: str) -> Iterator[tuple[str, Any, str]]:
    system = made_in.get("platform") or {}
    yield "the system", system.get("system"), platform.system()
    yield "the architecture", system.get("machine"), platform.machine()
    if torch.device(device).type == "cpu":
        yield "the processor", (made_in.get("cpu") or {}).get("isa"), cpu_capability()
    elif torch.device(device).type == "cuda":
        here = torch.cuda.get_device_properties(device)
        capabilities = {one["capability"] for one in made_in.get("gpus") or ()}
        own = f"{here.major}.{here.minor}"
        yield "compute capability", own if own in capabilities else next(iter(capabilities), None), own


def _ends(ends: Any) -> tuple[int, int]:
    low, high = ends
    return int(low), int(high)
