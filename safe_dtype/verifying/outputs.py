"""Run a model on one batch, and read from what it returns the tensors that are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import IncomparableOutputsError
from .decisions import decided_as
from .output_kinds import as_real, kind_of, kind_of_logits
from .result_fields import results_of

Model = Callable[..., Any]  # an nn.Module, or anything that is called as one: model(**batch)
Batch = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a model returned for one batch, on the CPU and in the model's own dtype.

    `main` is, by `kind`: "tokens": logits (batch, positions, vocabulary); "classes": logits (batch, classes);
    "labels": logits (batch, labels) or (batch, queries, labels), each decided for itself; "pixels": logits (batch,
    classes, height, width); "values": any other tensor. `hidden` is the last hidden state.
    """

    kind: str
    main: Tensor
    hidden: Tensor | None = None
    heads: Mapping[str, Tensor] = field(default_factory=dict)  # the other results, by name
    source: str = "logits"  # where `main` stands in what the model returned


def outputs_of(model: Model, batch: Batch) -> Outputs:
    """Call `model(**batch)` in inference mode, and read what it returns.

    A module gets the batch on its own device, floating inputs in its own dtype. The main output is the logits, or where
    there are none the last hidden state, or the first result; all other results (see `results_of`) are heads.

    Raises:
        IncomparableOutputsError: If it returns no floating tensor.
    """
    with torch.inference_mode():
        returned = model(**(batch_for(model, batch) if isinstance(model, nn.Module) else batch))
    hidden = _last_hidden(returned)
    results = {name: tensor for name, tensor in results_of(returned) if tensor.numel()}
    logits = _named(returned, "logits")
    if isinstance(logits, Tensor):
        kind = kind_of_logits(logits)
        if kind is None:
            raise IncomparableOutputsError(
                f"logits of shape {tuple(logits.shape)} are of no kind that can be compared",
                "wrap the model in a function that returns logits with 2, 3 or 4 dimensions, or one tensor",
            )
        if kind in ("classes", "tokens"):
            kind = decided_as(model, batch.get("labels"), logits) or kind
        return Outputs(kind, logits.cpu(), hidden, _heads(results, "logits"))
    if hidden is not None:
        return Outputs("values", as_real(hidden), hidden, _heads(results, "last_hidden_state"), "last_hidden_state")
    if not results:
        names = ", ".join(map(str, returned)) if isinstance(returned, Mapping) else type(returned).__name__
        raise IncomparableOutputsError(
            f"the model returns {names}, and in it no floating tensor",
            "wrap the model in a function that returns the tensor to compare",
        )
    name, values = next(iter(results.items()))
    source = name if isinstance(returned, (Tensor, Mapping)) else f"{name} of a {type(returned).__name__}"
    kind = kind_of(name, values)
    if kind in ("classes", "tokens"):
        kind = decided_as(model, batch.get("labels"), values) or kind
    return Outputs(kind, as_real(values).cpu(), None, _heads(results, name), source)


def _heads(results: Mapping[str, Tensor], main: str) -> dict[str, Tensor]:
    return {name: as_real(tensor).detach().cpu() for name, tensor in results.items() if name != main}


@contextmanager
def evaluating(*models: Model) -> Iterator[None]:
    """Bring every module among `models` into eval mode, and those parts that were training back afterwards."""
    modules = [part for model in models if isinstance(model, nn.Module) for part in model.modules()]
    training = [part for part in modules if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True


def batch_for(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """Return `batch` on the device of the first parameter of `model`, floating inputs in the dtype of its weights."""
    parameters = [one for one in model.parameters() if one.device.type != "meta" and one.is_floating_point()]
    if not parameters:
        return dict(batch)
    device = parameters[0].device
    # float8 and the like are storage formats, which no input comes in.
    dtype = next((one.dtype for one in parameters if one.dtype.itemsize > 1), torch.float32)
    return {
        name: value.to(device, dtype if value.is_floating_point() else None) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def _named(returned: Any, name: str) -> Any:
    return returned.get(name) if isinstance(returned, Mapping) else getattr(returned, name, None)


def _last_hidden(returned: Any) -> Tensor | None:
    """Return the last hidden state, the decoder's where there are two; None where the model gives none."""
    if isinstance(returned, Tensor):
        return None
    for name in ("decoder_hidden_states", "hidden_states"):
        layers = _named(returned, name)
        if isinstance(layers, tuple | list) and layers:
            last: Tensor = layers[-1]
            return last.cpu()
    last_one = _named(returned, "last_hidden_state")
    return last_one.cpu() if isinstance(last_one, Tensor) else None
