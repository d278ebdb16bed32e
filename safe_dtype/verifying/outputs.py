"""Run a model on one batch, and read from what it returns the one tensor that is compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import IncomparableOutputsError

Model = Callable[..., Any]  # an nn.Module, or anything that is called as one: model(**batch)
Batch = Mapping[str, Any]

_KIND_BY_DIMENSIONS = {2: "classes", 3: "tokens", 4: "pixels"}


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a model returned for one batch, on the CPU and in the model's own dtype.

    `main` is, by `kind`: "tokens": logits (batch, positions, vocabulary); "classes": logits (batch, classes);
    "pixels": logits (batch, classes, height, width); "values": any other tensor. `hidden` is the last hidden state.
    """

    kind: str
    main: Tensor
    hidden: Tensor | None = None


def outputs_of(model: Model, batch: Batch) -> Outputs:
    """Call `model(**batch)` in inference mode, and read what it returns.

    A module gets the batch on its own device, floating inputs in its own dtype.

    Raises:
        IncomparableOutputsError: If it returns neither logits, nor a last hidden state, nor a tensor.
    """
    with torch.inference_mode():
        returned = model(**(_fitted(model, batch) if isinstance(model, nn.Module) else batch))
    hidden = _last_hidden(returned)
    logits = _named(returned, "logits")
    if logits is not None:
        kind = kind_of_logits(logits)
        if kind is None:
            raise IncomparableOutputsError(
                f"logits of shape {tuple(logits.shape)} are of no kind that can be compared",
                "wrap the model in a function that returns logits with 2, 3 or 4 dimensions, or one tensor",
            )
        return Outputs(kind, logits.cpu(), hidden)
    values = returned if isinstance(returned, Tensor) else hidden
    if values is None:
        names = ", ".join(returned) if isinstance(returned, Mapping) else type(returned).__name__
        raise IncomparableOutputsError(
            f"the model returns {names}, and in it neither logits nor a last hidden state",
            "wrap the model in a function that returns the tensor to compare",
        )
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj()).flatten(-2)  # real and imaginary parts, side by side
    return Outputs("values", values.cpu(), hidden)


def kind_of_logits(logits: Tensor) -> str | None:
    """Return the kind of drift that is measured on logits of this shape; None where they have not 2 to 4 dimensions.

    Logits with one class only are "values": a softmax over one class is always 1, and would hide every difference.
    """
    kind = _KIND_BY_DIMENSIONS.get(logits.ndim)
    if kind is None:
        return None
    return kind if logits.shape[1 if kind == "pixels" else -1] > 1 else "values"


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


def _fitted(model: nn.Module, batch: Batch) -> dict[str, Any]:
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
