"""How a model was loaded: kept with the model, for its plan, and to read its weights again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..checkpoints.weight_files import WeightFiles
from ..errors import NoPlanError
from ..planning import Plan

_ATTRIBUTE = "_safe_dtype_origin"


@dataclass(frozen=True)
class Origin:
    """How a model was loaded: enough to read its weights again.

    A pickled model leaves it behind, so that the file can be read where safe_dtype is not installed.
    """

    plan: Plan
    model_class: type
    source: str | None
    arguments: Mapping[str, Any] = field(repr=False)
    files: WeightFiles = field(repr=False)  # as they were then

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def __deepcopy__(self, _memo: Any) -> Origin:
        return self


def keep_origin(model: Any, origin: Origin) -> None:
    """Keep `origin` with `model`."""
    setattr(model, _ATTRIBUTE, origin)


def known_origin(model: Any) -> Origin | None:
    """Return how `model` was loaded; None where safe_dtype did not load it."""
    origin = getattr(model, _ATTRIBUTE, None)
    return origin if isinstance(origin, Origin) else None


def own_origin(module: Any) -> Origin | None:
    """Return how `module` itself was loaded: known of it, and not of what it wraps."""
    origin = module.__dict__.get(_ATTRIBUTE)
    return origin if isinstance(origin, Origin) else None


def origin_of(model: Any) -> Origin:
    """Return how `model` was loaded.

    Raises:
        NoPlanError: If it was not loaded by safe_dtype.
    """
    origin = known_origin(model)
    if origin is None:
        raise NoPlanError(type(model).__name__)
    return origin


def plan_of(model: Any) -> Plan:
    """Return the plan that `model` was loaded with.

    Raises:
        NoPlanError: If it was not loaded by safe_dtype.
    """
    return origin_of(model).plan
