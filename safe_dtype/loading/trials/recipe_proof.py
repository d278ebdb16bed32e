"""A recipe of somebody else, proved on the very model that it is for: what float16 gives with it is measured at the load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...errors import CheckpointError, NothingToCompareError, RescaleError, VerifyError
from ...errors.of_the_moment import is_of_the_moment
from ...facts import FLOAT32, Gauge, Move, Rescale, exceeds
from ...numerics import compute_in
from ...planning import Plan
from ...rendering.units import size_text
from ...rescaling import gauges_for
from ...rescaling.fitting.bits import LIMIT
from ...rescaling.fitting.overflow import without_room
from ...rescaling.fitting.peaks import Peaks, peaks_of_block
from ...rescaling.folding.prove import RUN_FAILURES
from ...rescaling.lost_bits import require_bits_kept
from ...rescaling.to_float16 import own_names
from ...store.temporary import temporary_folder
from ...verifying import Checkpoint, drift_from, record_outputs
from ...verifying.outputs import batch_for
from ..request import Request
from .second_copy import second_copy_at

_NOISE = 1.1  # what a bound that was just kept in bfloat16 may be exceeded by in float16
_TOKENS = 64  # of our text: as many as show a range that does not hold, few enough for every load


@contextmanager
def proved_at_load(model: nn.Module, plan: Plan, request: Request) -> Iterator[None]:
    """Bring `model` into float16 inside: afterwards its drift from what it gave before is within the plan's limit.

    Where the plan is of no recipe, nothing is run. The reference is the model as it was saved, with products in float32.

    Raises:
        RescaleError: If it moves what is not moved in this architecture, or a weight would lose too much; the model is as it
            was then. Also if the drift is beyond the limit, or cannot be measured on a text, or activations come too near to
            the end of float16: the model is in float16 then.
    """
    if not plan.recipe:
        yield
        return
    if plan.rescale is not None:
        with _as_rescale_error():
            own = own_names(model)
            _require_own_moves(model, plan.rescale.renamed(own))
            require_bits_kept(model, plan.rescale.renamed(own), [own(one) for one in plan.islands])
    with temporary_folder("safe_dtype-recipe-") as folder:
        with _as_rescale_error():
            batches = _batches(second_copy_at(request, plan), model)
            with compute_in(FLOAT32):
                recording = record_outputs(model, batches, folder)
        yield
        with _as_rescale_error():
            with peaks_of_block(model, torch.float16) as peaks:
                drift = drift_from(recording, model, batches)
            if reason := exceeds(drift, plan.policy.max_drift):
                raise RescaleError(f"in float16 {reason}")
            _require_room(model, batches, peaks())


def _require_room(model: nn.Module, batches: Sequence[Mapping[str, Any]], peaks: Peaks) -> None:
    """Keep as much room above the largest activation as a rescue that is found here has to: other texts reach further."""
    ours = [batch_for(model, one) for one in batches]
    if peak := without_room(model, ours, torch.float16, peaks, LIMIT * _NOISE):
        raise RescaleError(
            f"in float16 activations reach {size_text(peak.largest)} in {peak.module or type(model).__name__}, and other texts "
            f"would take them beyond its end: {size_text(LIMIT)} is the most that a rescue leaves"
        )


def _require_own_moves(model: nn.Module, rescale: Rescale) -> None:
    """Take bits alone from `rescale`, in the model's own names: what it moves has to be what is found to cancel out in this architecture.

    No text shows a weight that it does not read (the row of one token, an expert that it is not sent to): a move of such
    a weight alone would pass every run.
    """
    known = gauges_for(model)  # says so itself where it is no model of transformers
    if known.problem and not known.gauges:
        raise RescaleError(f"what may be moved in it is not known: {known.problem}")
    allowed = {_counted(gauge) for gauge in known.gauges}
    for gauge, _ in rescale.shifts:
        if _counted(gauge) not in allowed:
            raise RescaleError(
                f"what it moves as {gauge.name!r} is not what cancels out in {type(model).__name__}, or it does so twice"
            )
        allowed.remove(_counted(gauge))
    if set(known.not_run) != set(rescale.unproven):  # with others the first token would take the rescale back
        raise RescaleError("what it says that a text does not reach is not what a text does not reach")


def _counted(gauge: Gauge) -> frozenset[tuple[Move, int]]:
    return frozenset(Counter(gauge.moves).items())


@contextmanager
def _as_rescale_error() -> Iterator[None]:
    try:
        with torch.inference_mode(mode=False), torch.no_grad():
            yield
    except RescaleError:
        raise
    except (CheckpointError, VerifyError) as exc:
        raise RescaleError(f"it could not be tried: {str(exc).partition(chr(10))[0]}") from exc
    except RUN_FAILURES as exc:
        if is_of_the_moment(exc):
            raise
        raise RescaleError(f"it could not be tried: {type(exc).__name__}: {exc}".partition("\n")[0]) from exc


def _batches(source: Checkpoint, model: nn.Module) -> Sequence[Mapping[str, Any]]:
    try:
        return source.batches(tokens=_TOKENS)
    except (CheckpointError, NothingToCompareError):
        config = getattr(model, "config", None)
        vocabulary = getattr(getattr(config, "get_text_config", lambda: config)(), "vocab_size", 0)
        return source.random_batches(int(vocabulary or 0), tokens=_TOKENS)
