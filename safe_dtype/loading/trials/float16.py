"""What float16 does to a checkpoint that was made in a wider dtype: measured on the checkpoint itself, once."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...checkpoints.fingerprint import fingerprint
from ...errors import CheckpointError, NothingToCompareError, RescaleError, VerifyError
from ...errors.of_the_moment import is_of_memory, is_of_the_moment
from ...facts import (
    BFLOAT16,
    DEFAULT_MAX_DRIFT,
    FLOAT16,
    FLOAT32,
    BlockPeak,
    CheckpointFacts,
    DeviceFacts,
    Drift,
    Dtype,
    HalfRange,
    Rescale,
    drift_from_dict,
    drift_to_dict,
    dtype_named,
    exceeds,
)
from ...models.blocks import block_names
from ...numerics import compute_in
from ...planning import Candidate, Ground, Plan, Policy, first_measurement, make_plan, range_worth_measuring
from ...rendering.json_numbers import json_numbers, number_from_json
from ...rendering.progress import part
from ...rescaling import fit_to_half, gauges_for
from ...rescaling.folding.prove import RUN_FAILURES
from ...rescaling.to_float16 import before_half, computing_on, halve, keep_as_in_half
from ...store import entries
from ...store.keys import results_key
from ...store.temporary import temporary_folder
from ...store.typed import listed
from ...verifying import Checkpoint, Recording, record_outputs
from ...verifying.drift import tallied
from ..request import Request
from .minimal_islands import fewest
from .remembered_trial import recall_trial, remember_trial
from .second_copy import (
    KERNEL_ARGUMENTS,
    can_be_loaded_apart,
    how_it_runs,
    load_apart,
    main_memory_for,
    rates_are_sure,
    read_in_place_of_text,
    reads_text,
    room_for_a_copy,
    second_copy_of,
)
from .shared_recipe import recipe_for

logger = logging.getLogger(__name__)

_TOKENS = 512  # of the text, in batches of 128
_POSITIONS_KEPT = 512  # of the drift, for a picture
_PARTS = 4  # that it is tried in
_BEFORE_FLOAT32 = 1.1  # of its weights' bytes have to be free, else the reference stays in 16 bit

Batches = Sequence[Mapping[str, Any]]
Expected = tuple[Candidate, ...]
Measured = tuple[Drift, tuple[float, ...]]  # with KL at each position


def plan_with_half(
    plan: Plan, request: Request, device: DeviceFacts, checkpoint: CheckpointFacts, policy: Policy | None, *, measure: bool
) -> tuple[Plan, CheckpointFacts, Expected]:  # fmt: skip
    """Return `plan`, or the one in float16 that activations allow, the facts that it rests on, and what it expects.

    Where they were measured on another device only, and cannot be measured on this one now, that is used: how large
    they become does not depend on the device.

    Args:
        plan: Made without a look at activations.
        request: The call that it was made for.
        device: The facts that it was made from; so `checkpoint` and `policy`.
        checkpoint: The same.
        policy: The same.
        measure: Whether to measure what is not remembered: that loads the model, and runs it on a short text. Else the
            plan expects what nobody measured to be well, as far as a load would measure it.
    """
    is_asked = FLOAT16 in plan.policy.ladder
    if not can_be_loaded_apart(request, device, checkpoint, is_asked=is_asked):
        return plan, checkpoint, ()
    is_unsure = plan.ordered is None and not is_asked and not rates_are_sure(device)  # on which it would rest
    if is_unsure or not range_worth_measuring(plan, checkpoint):
        return (*_as_remembered(plan, request, device, checkpoint, policy), ())
    place = room_for_a_copy(plan, device, checkpoint)
    half = half_of(plan, request, place or device, checkpoint, measure=False)
    elsewhere = None if half else _of_another_device(plan, request, checkpoint)
    if half is None and elsewhere is None:
        half = recipe_for(request, checkpoint, plan.policy)
    if half is None and measure and place is not None:
        half = half_of(plan, request, place, checkpoint, measure=True)
    half = half or elsewhere
    if half is not None:
        checkpoint = replace(checkpoint, half=half)
        return make_plan(device, checkpoint, policy, ordered=plan.ordered, expected=()), checkpoint, ()
    if measure or place is None or not reads_text(checkpoint):
        return plan, checkpoint, ()
    expected = first_measurement(plan, checkpoint)
    return make_plan(device, checkpoint, policy, ordered=plan.ordered, expected=expected), checkpoint, expected


def _as_remembered(
    plan: Plan, request: Request, device: DeviceFacts, checkpoint: CheckpointFacts, policy: Policy | None
) -> tuple[Plan, CheckpointFacts]:
    """Return a plan that float16 would not change, with what was measured of its range on this device, and its facts.

    Where float16 would now be picked, the plan stays, and only tells what was measured.
    """
    unknown = [one for one in plan.decisions if one.candidate.storage == FLOAT16 and one.ground is Ground.RANGE]
    if not unknown or checkpoint.half is not None or plan.policy.mode == "strict" or plan.quantization:
        return plan, checkpoint
    half = half_of(plan, request, device, checkpoint, measure=False)
    if half is None:
        return plan, checkpoint
    known = replace(checkpoint, half=half)
    seen = make_plan(device, known, policy, ordered=plan.ordered, expected=())
    if seen.chosen is not None and plan.chosen is not None and seen.chosen.candidate == plan.chosen.candidate:
        return seen, known
    reason = (
        f"its activations were measured ({half}), and what it would gain here is too small or too unsure to round "
        "the weights for; `--policy ladder=float16` takes it"
    )
    decisions = tuple(replace(one, reason=reason) if one in unknown else one for one in plan.decisions)
    return replace(plan, decisions=decisions), checkpoint


def half_of(
    plan: Plan, request: Request, device: DeviceFacts, checkpoint: CheckpointFacts, *, measure: bool, text: str | None = None
) -> HalfRange | None:  # fmt: skip
    """Return what it takes to run the checkpoint in float16: remembered, else measured now where `measure` is set.

    With a `text` of the user's own it is measured anew on that, and remembered in place of what was.
    """
    key = {**_key(device, fingerprint(checkpoint, request.where)), **how_it_runs(request, plan)}
    half = None if text is not None else recall_trial(key, request.where, lambda entry: half_from_dict(entry["half"]))
    if half is not None or not measure:
        return half
    if (reads := read_in_place_of_text(checkpoint)) is not None:
        return HalfRange(0.0, 0.0, problem=f"its activations are not known: it reads {reads}, not text")
    logger.warning(
        "%s: measuring whether float16 holds its activations, once; loading takes longer this time", plan.source
    )
    half, no_room = _measured_on(device, plan, request, checkpoint, text)
    if half is None and (main := main_memory_for(device, checkpoint)) is not None:
        logger.warning("%s: %s; measuring it in main memory, which takes longer", plan.source, no_room)
        half, no_room = _measured_on(main, plan, request, checkpoint, text)
    if half is None:
        return HalfRange(0.0, 0.0, problem=f"there is no room to measure it now: {no_room}")
    logger.warning("%s: measured in float16: %s%s", plan.source, half, _kl_of(half))
    remember_trial(key, request.where, plan.source, {"half": half_to_dict(half)})
    return half


def _measured_on(
    device: DeviceFacts, plan: Plan, request: Request, checkpoint: CheckpointFacts, text: str | None
) -> tuple[HalfRange | None, str]:  # fmt: skip
    """Return what was measured on `device`; where it has no room, None and its words."""
    try:
        source = second_copy_of(request, device, plan)
        return measure_half(source, checkpoint, device, text=text, max_drift=plan.policy.max_drift), ""
    except RUN_FAILURES as exc:
        if not is_of_memory(exc):
            raise
        return None, str(exc).partition("\n")[0]
    finally:
        gc.collect()  # models of transformers refer to themselves, and the caller's own needs the room


def _kl_of(half: HalfRange) -> str:
    return "" if half.drift is None else f"; KL {half.drift.kl_mean:.2g} nats to {half.reference}"


def _of_another_device(plan: Plan, request: Request, checkpoint: CheckpointFacts) -> HalfRange | None:
    """Return what was measured of this checkpoint, run in the same way, on whichever device that was."""
    how = how_it_runs(request, plan)
    digest = fingerprint(checkpoint, request.where)

    def matches(key: Mapping[str, Any]) -> bool:
        return key.get("half_of") == digest and all(key.get(name) == how.get(name) for name in KERNEL_ARGUMENTS)

    # Which file belongs to which device is not known beforehand, so all are read: where nothing was found for this one.
    keys = [entry.key for entry in entries() if matches(entry.key)]
    known = (recall_trial(key, request.where, lambda entry: half_from_dict(entry["half"])) for key in keys)
    halves = (replace(half, measured_on=str(key["device"])) for key, half in zip(keys, known, strict=True) if half)
    return next(halves, None)


def measure_half(
    source: Checkpoint,
    checkpoint: CheckpointFacts,
    device: DeviceFacts,
    *,
    text: str | None = None,
    max_drift: float = DEFAULT_MAX_DRIFT,
) -> HalfRange:
    """Load the checkpoint, look at its activations, find what brings them into range, and measure the drift with that.

    Args:
        source: Where to load it from.
        checkpoint: What its files hold.
        device: What the device does: where it cannot multiply in bfloat16, products are computed in float32.
        text: What to run it on; by default a short text of ours, random tokens where there is no tokenizer.
        max_drift: What islands have to bring the drift below.

    Raises:
        RuntimeError: If there is no room for the model beside what is there, or the device is lost.
    """
    try:
        with torch.inference_mode(mode=False), torch.enable_grad():  # whatever the caller is in
            batches, noise = _batches(source, checkpoint, text)
            half = replace(_Trial(source, checkpoint, device, batches, max_drift).half(), on_noise=noise)
    except (CheckpointError, VerifyError, RescaleError) as exc:
        half = HalfRange(0.0, 0.0, problem=str(exc).partition("\n")[0])
    except RUN_FAILURES as exc:  # a model of text and images, say
        if is_of_the_moment(exc):
            raise  # nothing to be remembered
        text_only = f"it cannot be run on a text here: {type(exc).__name__}: {exc}"
        half = HalfRange(0.0, 0.0, problem=text_only.partition("\n")[0])
    return half


@dataclass
class _Trial:
    """One checkpoint being tried in float16."""

    source: Checkpoint
    checkpoint: CheckpointFacts
    device: DeviceFacts
    batches: Batches
    max_drift: float

    def half(self) -> HalfRange:
        """Return what it takes, with the drift. No two models are held at a time."""
        with part("looking at its activations", 0, _PARTS):
            half, doubtful = self._fitted()
        gc.collect()  # models of transformers refer to themselves, and the next one needs the room
        if half.problem:
            return half
        with temporary_folder("safe_dtype-half-") as folder:
            reference = FLOAT32 if self._float32_fits() else self._saved
            with part(f"running it in {reference}", 1, _PARTS):
                recording = self._recorded(reference, folder)
            with part("running it in float16", 2, _PARTS):
                drift, kl = self._drift(half, recording)
                half = replace(half, drift=drift, kl=kl, reference=reference)
            with part("looking for fewer islands", 3, _PARTS):
                return self._with_fewest_islands(half, doubtful, recording)

    @property
    def _saved(self) -> Dtype:
        return before_half(self.checkpoint.saved)

    def _fitted(self) -> tuple[HalfRange, tuple[str, ...]]:
        model = load_apart(self.source, BFLOAT16)  # of float32 as well: what a norm computes in float32 shows there
        discovery = gauges_for(model)
        keep_as_in_half(model)
        with computing_on(self.device, BFLOAT16):
            half, doubtful = fit_to_half(
                model, self.batches, discovery.gauges, blocks=block_names(model), problem=discovery.problem
            )
        rescale = replace(half.rescale, unproven=discovery.not_run) if half.rescale else None
        return replace(half, rescale=rescale, unseen=discovery.not_run), doubtful

    def _recorded(self, reference: Dtype, folder: Path) -> Recording:
        model = load_apart(self.source, reference)
        with nullcontext() if reference == FLOAT32 else compute_in(FLOAT32):
            return record_outputs(model, self.batches, folder)

    def _drift(self, half: HalfRange, recording: Recording) -> Measured:
        gc.collect()
        model = load_apart(self.source, self._saved)
        halve(model, half.rescale, half.islands, computing=computing_on(self.device, self._saved))
        tally = tallied(recording, model, self.batches)
        return tally.drift(), tuple(float(f"{value:.4g}") for value in tally.kl(_POSITIONS_KEPT))

    def _with_fewest_islands(self, half: HalfRange, doubtful: tuple[str, ...], recording: Recording) -> HalfRange:
        """Return to float16 what does not have to be in float32, as long as the drift stays within the limit."""
        if not doubtful or half.drift is None or exceeds(half.drift, self.max_drift):
            return half
        sure = tuple(name for name in half.islands if name not in doubtful)
        drifts: dict[tuple[str, ...], Measured] = {doubtful: (half.drift, half.kl)}

        def holds(islands: tuple[str, ...]) -> bool:
            if islands not in drifts:
                drifts[islands] = self._drift(replace(half, islands=(*sure, *islands)), recording)
            return exceeds(drifts[islands][0], self.max_drift) is None

        islands = fewest(doubtful, holds)
        drift, kl = drifts[islands]
        return replace(half, islands=(*sure, *islands), drift=drift, kl=kl)

    def _float32_fits(self) -> bool:
        needed = self.checkpoint.parameters * FLOAT32.itemsize * _BEFORE_FLOAT32
        return self.device.memory.has_room_for(needed)


def _batches(source: Checkpoint, checkpoint: CheckpointFacts, text: str | None) -> tuple[Batches, bool]:
    """Return what to run the model on, and whether that is noise."""
    try:
        return source.batches(text, tokens=_TOKENS), False
    except (
        CheckpointError,
        NothingToCompareError,
    ):  # without a tokenizer's files, transformers makes a tokenizer with an empty vocabulary
        if text is not None:
            raise
        return source.random_batches(checkpoint.vocab_size), True


def _key(device: DeviceFacts, digest: str) -> Mapping[str, Any]:
    return {"half_of": digest, **results_key(device)}


def half_to_dict(half: HalfRange) -> dict[str, Any]:
    """Return what was measured as plain values."""
    return {
        "peak": half.peak,
        "left": half.left,
        "block_peaks": [asdict(one) for one in half.block_peaks],
        "rescale": half.rescale.to_dict() if half.rescale else None,
        "islands": list(half.islands),
        "on_noise": half.on_noise,
        "unseen": list(half.unseen),
        "problem": half.problem,
        "drift": drift_to_dict(half.drift) if half.drift else None,
        "certified": half.certified,
        "reference": half.reference.name,
        "kl": json_numbers(half.kl),
    }


def half_from_dict(values: Mapping[str, Any]) -> HalfRange:
    """Return what `half_to_dict` wrote.

    Raises:
        KeyError, TypeError, ValueError: If it wrote something else.
    """
    return HalfRange(
        peak=float(values["peak"]),
        left=float(values["left"]),
        block_peaks=tuple(BlockPeak(**one) for one in listed(values["block_peaks"])),
        rescale=Rescale.from_dict(values["rescale"]) if values["rescale"] else None,
        islands=listed(values["islands"]),
        on_noise=bool(values["on_noise"]),
        unseen=listed(values["unseen"]),
        problem=str(values["problem"]),
        drift=drift_from_dict(values["drift"]) if values["drift"] else None,
        certified=float(values["certified"]) if values["certified"] else None,
        reference=dtype_named(str(values["reference"])),
        kl=tuple(float(number_from_json(one)) for one in values.get("kl") or ()),
    )
