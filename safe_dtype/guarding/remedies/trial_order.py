"""In which order remedies are tried, and how one from outside gets its place among them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

from ..incident import Incident
from ..registration import Registered, Registration
from . import (
    align_inputs,
    align_module,
    attention,
    autocast,
    float32_island,
    next_dtype,
    raise_rescale,
    rescale_exactly,
    scale_linear,
    use_float32_copy,
    without_compilation,
    without_onednn,
)
from .remedy import Proposal, Remedy

logger = logging.getLogger(__name__)

Place = Literal[
    "without_compilation",
    "without_onednn",
    "attention",
    "align_inputs",
    "autocast",
    "align_module",
    "raise_rescale",
    "rescale_exactly",
    "scale_linear",
    "float32_island",
    "next_dtype",
]

# What changes least comes first; another dtype for the whole model comes last.
_OURS: dict[Place, Proposal] = {
    "without_compilation": without_compilation.propose,
    "without_onednn": without_onednn.propose,
    "attention": attention.propose,
    "align_inputs": align_inputs.propose,
    "autocast": autocast.propose,
    "align_module": align_module.propose,
    "raise_rescale": raise_rescale.propose,
    "rescale_exactly": rescale_exactly.propose,
    "scale_linear": scale_linear.propose,
    "float32_island": float32_island.propose,
    "next_dtype": next_dtype.propose,
}
# Those that cast, move or scale weights.
_ON_WEIGHTS = (
    "align_module", "raise_rescale", "rescale_exactly", "scale_linear", "float32_island", "next_dtype",
)  # fmt: skip
_registered: Registered[tuple[Place, Proposal]] = Registered()


def register_remedy(propose: Proposal, *, before: Place = "next_dtype") -> Registration:
    """Have remedies of your own tried on every guarded model of this process, from now on.

    Args:
        propose: Called with each `Incident` that the remedies before its place did not cure; returns or yields what may
            cure it, best first, or nothing. It decides by `incident.failure.kind`, and may look at `incident.model`
            and `incident.blamed`, the module that failed (None where that is not known). Where it raises, or proposes what
            is no remedy, that is logged, and the remedies after it are tried.
        before: The remedy of safe_dtype before which yours are tried. In their order these are "without_compilation",
            "without_onednn", "attention", "align_inputs", "autocast", "align_module", "raise_rescale", "rescale_exactly",
            "scale_linear", "float32_island" and "next_dtype". Remedies registered for the same place are tried in the
            order in which they were registered.

    Returns:
        The registration. Its `remove()` takes the remedies out again, and so does the end of a `with` block. What they
        have changed by then stays.

    Raises:
        ValueError: If `before` is no remedy of safe_dtype.
    """
    if before not in _OURS:
        raise ValueError(
            f"before={before!r} is no remedy of safe_dtype. Next: use one of {', '.join(get_args(Place))}."
        )
    return _registered.add((before, propose))


def remedies_for(incident: Incident) -> Iterator[Remedy]:
    """Yield what may cure the failure, best first. Each is proposed only once those before it were tried."""
    stays = incident.guard.weights_stay
    for place, ours in _OURS.items():
        for propose in [propose for before, propose in _registered if before == place]:
            yield from (one for one in _registered_by(propose, incident) if not (stays and one.changes_dtype))
        if not (stays and place in _ON_WEIGHTS):
            yield from ours(incident) or ()
    if stays:
        yield from use_float32_copy.propose(incident)


def _registered_by(propose: Proposal, incident: Incident) -> Iterator[Remedy]:
    """Yield what code of the user proposes. What is wrong with it is logged, and costs only itself."""
    name = getattr(propose, "__qualname__", repr(propose))
    try:
        proposed: object = propose(incident)
        if proposed is not None and not isinstance(proposed, Iterable):
            raise TypeError(f"it returned a {type(proposed).__name__}, and not remedies that can be iterated over")
        for remedy in proposed or ():
            if all(hasattr(remedy, part) for part in ("changes_dtype", "apply", "undo")):
                yield remedy
            else:
                logger.warning("%r, which %s proposes, is no remedy, and is left out", remedy, name)
    except Exception as exc:  # noqa: BLE001  # whatever it raises, the remedies after it are tried
        logger.warning("what %s proposes is left out: %s: %s", name, type(exc).__name__, exc)
