"""Make the folder that becomes the repository: load, save, copy what lies beside, measure from the files, write it down."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...devices.unused_memory import free_unused_memory
from ...errors import CheckpointError, RescaleError, UnknownDtypeError
from ...facts import COMPUTE, DEFAULT_MAX_DRIFT, FLOAT16, CheckpointFacts, DeviceFacts, Dtype, Rescale, dtype_named
from ...facts.variant import VARIANT_FILE
from ...loading import Request, checkpoint_for, device_for, explained, foreseen_in_all, plan_request
from ...loading.trials.second_copy import load_apart
from ...planning import Plan, Policy
from ...rescaling.for_plain import Folded, fold_for_plain
from ...rescaling.to_float16 import before_half, computing_on, halve
from ...store.temporary import temporary_folder
from ...verifying import Checkpoint
from .card import write_card
from .config_note import bytes_of, device_to_dict, note_in_config, rescale_to_dict, store_rescue, versions
from .evidence import Evidence, Fidelity, LayerRange, not_publishable, write_evidence
from .measure import Reference, by_safe_dtype, plainly, reference_of
from .plots import write_plots
from .source import VariantSource, source_of
from .staged_files import counts_of, digests_of

logger = logging.getLogger(__name__)

_SHARD = "5GB"  # what is resumed at once

Progress = Callable[[str], None]  # is told what begins


@dataclass(frozen=True, slots=True)
class Staged:
    """A folder that is ready to be checked and pushed."""

    folder: Path
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class _Wishes:
    """What the caller wants, beside a dtype."""

    text: str | None
    max_drift: float
    needs: str | None
    tell: Progress


@dataclass(frozen=True, slots=True)
class _Planned:
    """What the variant is to be, and the facts that this rests on."""

    plan: Plan
    facts: CheckpointFacts
    device: DeviceFacts
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class _Saved:
    """One way to save the variant, and what plain transformers makes of it."""

    folder: Path
    folded: Folded | None
    plain: Fidelity
    peaks: Mapping[str, float]


def stage(  # noqa: PLR0913  # what the command's options say, each once
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    revision: str | None = None,
    base: str | None = None,
    needs: str | None = None,
    license: str | None = None,  # noqa: A002  # the card's word
    text: str | None = None,
    max_drift: float = DEFAULT_MAX_DRIFT,
    progress: Progress | None = None,
) -> Staged:  # fmt: skip
    """Make `folder` a variant of `source` in `dtype`, with what was measured of it. Whole, or not at all.

    Args:
        source: A repository of the Hub, a folder, or what `optimize` made: then its original, in the dtype it chose.
        folder: Must not exist, or be empty.
        dtype: float32, bfloat16 or float16; by default what the plan for this machine chooses.
        revision: Of the repository.
        base: The repository that a folder came from, "org/model" or "org/model@<commit>".
        needs: "safe_dtype": publish it even though plain transformers computes something else.
        license: Where the base's own card names none.
        text: What to measure on; by default a short one of ours, random tokens where there is no tokenizer.
        max_drift: From float32, in the unit that `safe_dtype.exceeds` gives to each kind.
        progress: Is told what begins.

    Raises:
        NotPublishableError: If `folder` is taken, plain transformers computes something else and `needs` does not allow
            that, or safe_dtype does; if `license` is not what the base's card says.
        CheckpointError: If the source cannot be found, read or run on text.
        PlanError: If `dtype` is rejected on this machine.
        VerifyError: If its drift cannot be measured.
        UnknownDtypeError: If `dtype` is none that models run in.
    """
    folder = Path(folder)
    _check_free(folder, needs)
    wanted = _computable(dtype) if dtype else None
    tell = progress or (lambda _: None)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(f".{folder.name}-", beside=folder.parent) as aside:
        tell("reading the source")
        variant_source = source_of(source, revision=revision, base=base, license=license)
        made = aside / folder.name
        request = Request(variant_source.weights, {})
        for failure in foreseen_in_all(request, reads_text=False):  # random weights are no variant either
            if not failure.leaves_out:  # what the model has no place for, the variant has none for either
                raise CheckpointError(variant_source.name, failure.problem, failure.advice)
        with explained(request, reads_text=False):
            evidence = _Job(variant_source, aside, made, _Wishes(text, max_drift, needs, tell)).run(wanted)
        if folder.exists():
            folder.rmdir()
        made.rename(folder)
    return Staged(folder, evidence)


def _computable(name: str) -> Dtype:
    dtype = dtype_named(name)
    if dtype not in COMPUTE:
        raise UnknownDtypeError(name, tuple(one.name for one in COMPUTE))
    return dtype


def _check_free(folder: Path, needs: str | None) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        is_staged = (folder / VARIANT_FILE).is_file()
        happened = "a variant is staged there already" if is_staged else "there is something at that place already"
        raise not_publishable(folder, happened, f"remove {folder}, or name another folder (folder='...')")
    if needs not in (None, "safe_dtype"):
        raise not_publishable(folder, f"needs={needs!r} is unknown", "pass needs='safe_dtype', or leave it out")


class _Job:
    """One variant being made in `aside`, a folder beside the one that it becomes."""

    def __init__(self, source: VariantSource, aside: Path, made: Path, wishes: _Wishes) -> None:
        self.source, self.aside, self.made, self.wishes = source, aside, made, wishes
        self.source_sha256 = source.sha256()  # before it is loaded: what changes meanwhile counts as changed since

    def run(self, dtype: Dtype | None) -> Evidence:
        """Make it, and return what is known of it."""
        planned = self._planned(dtype or (_computable(self.source.dtype) if self.source.dtype else None))
        self.wishes.tell("running the base in float32")
        reference = reference_of(
            planned.checkpoint, planned.facts.vocab_size, self.wishes.text, self.aside / "reference"
        )
        gc.collect()  # models of transformers refer to themselves, and the next one needs the room
        saved = self._saved(planned, reference)
        if saved.plain.beyond and self.wishes.needs is None:
            raise not_publishable(
                self.made,
                f"plain transformers makes something else of it in {planned.plan.storage}: {saved.plain.beyond}",
                "stage it in bfloat16, or with needs='safe_dtype', which the card then says at its top",
            )
        self.wishes.tell("running it with safe_dtype")
        ours = by_safe_dtype(
            saved.folder, planned.plan.storage, reference,
            device=planned.checkpoint.device, max_drift=self.wishes.max_drift,
        )  # fmt: skip
        if ours.beyond:
            problem = f"safe_dtype loads it, and computes something else: {ours.beyond}"
            raise not_publishable(self.made, problem, "stage it in bfloat16 or float32")
        saved.folder.rename(self.made)
        return self._written(planned, reference, saved, ours)

    def _planned(self, wanted: Dtype | None) -> _Planned:
        request = Request(self.source.weights, {"dtype": wanted.name} if wanted else {})
        plan = plan_request(request, Policy(max_drift=self.wishes.max_drift), drifts="measured")
        facts = checkpoint_for(request)
        if facts.quantization or facts.adapter:
            what = f"quantized by {facts.quantization}" if facts.quantization else "an adapter"
            raise not_publishable(self.made, f"the source is {what}", "stage the model that it was made of")
        device = device_for(request, facts)
        return _Planned(plan, facts, device, Checkpoint(str(self.source.weights), device.device.partition(",")[0]))

    def _saved(self, planned: _Planned, reference: Reference) -> _Saved:
        """Return the way to save it that plain transformers computes right, if there is one: folded before unfolded."""
        if planned.plan.rescale is not None:
            folded = self._folded(planned, planned.plan.rescale, reference)
            if folded is not None and folded.plain.beyond is None:
                return folded
        return self._measured(self._save(self._as_it_is(planned), planned, None), None, planned, reference)

    def _folded(self, planned: _Planned, rescale: Rescale, reference: Reference) -> _Saved | None:
        start = before_half(planned.plan.saved)
        model = load_apart(planned.checkpoint, start)
        try:
            computing = computing_on(planned.device, start)
            folded = fold_for_plain(model, rescale, islands=planned.plan.islands, computing=computing)
        except RescaleError as exc:
            logger.info("%s: its rescale stays with safe_dtype (%s)", self.source.name, exc.problem)
            return None
        halve(model, None, planned.plan.islands)
        place = self._save(model, planned, folded)
        del model  # it is measured in another process, which needs the room
        return self._measured(place, folded, planned, reference)

    def _as_it_is(self, planned: _Planned) -> Any:
        if planned.plan.storage != FLOAT16 or not planned.plan.islands:
            return load_apart(planned.checkpoint, planned.plan.storage)
        model = load_apart(planned.checkpoint, before_half(planned.plan.saved))
        halve(model, None, planned.plan.islands)
        return model

    def _save(self, model: Any, planned: _Planned, folded: Folded | None) -> Path:
        how = "unfolded" if folded is None else "folded"
        self.wishes.tell(f"saving it, {how}")
        place = self.aside / how / self.made.name
        model.save_pretrained(place, max_shard_size=_SHARD)
        self.source.copy_beside(place)
        store_rescue(place, planned.plan, folded)
        note_in_config(place, self.wishes.needs)
        return place

    def _measured(self, place: Path, folded: Folded | None, planned: _Planned, reference: Reference) -> _Saved:
        free_unused_memory()
        self.wishes.tell("running it with plain transformers")
        plain, peaks = plainly(
            place, reference, device=planned.checkpoint.device, max_drift=self.wishes.max_drift,
            scratch=place.parent / "scratch",
        )  # fmt: skip
        return _Saved(place, folded, plain, peaks)

    def _written(self, planned: _Planned, reference: Reference, saved: _Saved, ours: Fidelity) -> Evidence:
        self.wishes.tell("writing down what was measured")
        needs = self.wishes.needs
        if needs and not saved.plain.beyond:
            logger.info("%s: plain transformers is right, so that %s is not needed", self.source.name, needs)
            needs = None
        note_in_config(self.made, needs)
        plan = planned.plan
        evidence = Evidence(
            base=replace(self.source.base, saved=planned.facts.saved.name, bytes=bytes_of(planned.facts)),
            dtype=plan.storage.name,
            architecture=reference.architecture,
            tensors=counts_of(self.made),
            safe_dtype=ours,
            plain=saved.plain,
            max_drift=self.wishes.max_drift,
            measured_on=reference.measured_on,
            ranges=tuple(
                LayerRange(name, peak, saved.peaks[name])
                for name, peak in reference.peaks.items()
                if name in saved.peaks
            ),
            islands=plan.islands,
            rescale=rescale_to_dict(plan, saved.folded),
            needs=needs,
            plan=self.source.without_places(replace(plan, source=self.source.name, made_for=None).to_dict()),
            device=device_to_dict(planned.device),
            versions=versions(),
            command=self._command(plan.storage, needs),
            forms=self.source.forms(),
            source_sha256=self.source_sha256,
        )
        write_plots(evidence, self.made)
        evidence = replace(evidence, files=digests_of(self.made))
        write_evidence(evidence, self.made)
        write_card(self.made)
        return evidence

    def _command(self, dtype: Dtype, needs: str | None) -> str:
        base, wishes = self.source.base, self.wishes
        words = ["safe-dtype publish stage", base.repo or self.source.name, f"--dtype {dtype}"]
        words += [f"--source-revision {base.revision}"] if base.revision else []
        words += [f"--needs {needs}"] if needs else []
        words += [f"--max-drift {wishes.max_drift}"] if wishes.max_drift != DEFAULT_MAX_DRIFT else []
        words += ["--text FILE"] if wishes.text is not None else []
        return " ".join([*words, "--out FOLDER"])
