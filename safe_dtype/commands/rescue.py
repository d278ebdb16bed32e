"""A checkpoint in float16, where it was made in a wider dtype: what `safe-dtype rescue` measures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..errors import CheckpointError
from ..facts import DEFAULT_MAX_DRIFT, FLOAT16, Dtype, HalfRange, drift_to_dict, exceeds, factor_of, summary
from ..loading import Request, checkpoint_for, device_for, half_of
from ..loading.plan_request import as_loaded_here
from ..planning import Policy, make_plan
from ..rendering.json_numbers import json_number, json_numbers
from ..rendering.range_bars import RangeKey, RangeRow, range_bars
from ..rendering.svg import BLUE, BROWN
from ..rendering.units import size_text


@dataclass(frozen=True, slots=True)
class Rescue:
    """What it takes to run a checkpoint in float16 on a device, and the verdict."""

    model: str
    saved: Dtype
    device: str
    half: HalfRange
    beyond: str | None  # why float16 is rejected; None where it is safe
    max_drift: float = DEFAULT_MAX_DRIFT  # that its drift was held to

    @property
    def mends(self) -> bool:
        """Whether float16 is safe here, and only with what was found: plain float16 is another computation."""
        return self.beyond is None and (self.half.rescale is not None or bool(self.half.islands))

    def as_text(self) -> str:
        """Return the verdict, then every gauge with its moves, the islands, and the drift that was measured."""
        half = self.half
        lines = [f"{self.model} (saved in {self.saved}) in float16 on {self.device}: {half}"]
        for gauge, bits in half.rescale.shifts if half.rescale else ():
            lines.append(f"  {gauge.name} {factor_of(bits)}")
            lines += [f"    {line}" for line in summary(gauge, bits)]
        lines += [f"  in float32: {name}" for name in half.islands]
        if half.drift is not None:
            drift = half.drift
            lines.append(
                f"  against {half.reference}: KL {drift.kl_mean:.3g} nats, {drift.top1_agreement:.2%} of the top tokens "
                f"the same, {drift.positions} positions"
            )
        return "\n".join([*lines, f"NOT in float16: {self.beyond}" if self.beyond else "float16 is safe here."])

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain values of JSON."""
        half = self.half
        return {
            "model": self.model, "saved": self.saved.name, "device": self.device, "does": self.beyond is None,
            "beyond": self.beyond, "peak": json_number(half.peak), "left": json_number(half.left),
            "certified": json_number(half.certified), "blocks": json_numbers([asdict(block) for block in half.block_peaks]),
            "rescale": half.rescale.to_dict() if half.rescale else None, "islands": list(half.islands),
            "drift": json_numbers(drift_to_dict(half.drift)) if half.drift else None,
            "reference": half.reference.name,
        }  # fmt: skip

    def as_svg(self) -> str:
        """Return a picture: the largest |number| of every block as it is and rescaled, and where float16 ends."""
        rows = [
            RangeRow(
                block.block, block.plain, block.rescaled,
                f"{block.block}: {size_text(block.plain)} as saved, {size_text(block.rescaled)} rescaled",
            )
            for block in self.half.block_peaks
        ]  # fmt: skip
        keys = (RangeKey("as saved", BROWN), RangeKey("rescaled", BLUE))
        return range_bars(f"{self.model}: largest |hidden state| of every block", rows, keys, end=FLOAT16.largest)


def rescue(
    model: str, *, device: str | None, revision: str | None, text: str | None, max_drift: float
) -> Rescue:  # fmt: skip
    """Find out what it takes to run a checkpoint in float16, and remember it for every later load.

    Args:
        model: A folder or a repository on the Hub.
        device: Where it will run; None: the first accelerator, else the CPU.
        revision: Of the repository.
        text: What to run it on, in place of what is remembered; None: what is remembered, else a short text of ours.
        max_drift: In the unit that `safe_dtype.exceeds` gives to each kind.

    Raises:
        CheckpointError: If the checkpoint cannot be found or read, or it was made in float16 itself.
        NoSuchDeviceError: If the device is not here.
    """
    rescued = _rescue(model, device, revision, max_drift, text=text, measure=True)
    if rescued is None:
        raise CheckpointError(model, "nothing was measured", "report this")
    return rescued


def remembered_rescue(model: str, *, device: str, revision: str | None, max_drift: float) -> Rescue | None:
    """Return what an earlier rescue of this checkpoint on this device found; None where none is remembered.

    Raises:
        CheckpointError: If the checkpoint cannot be read, or was made in float16 itself.
    """
    return _rescue(model, device, revision, max_drift, text=None, measure=False)


def _rescue(
    model: str, device: str | None, revision: str | None, max_drift: float, *, text: str | None, measure: bool
) -> Rescue | None:  # fmt: skip
    request = Request(model, {"revision": revision, "device_map": device, "dtype": "float16"})
    checkpoint = checkpoint_for(request)
    if checkpoint.saved == FLOAT16:
        raise CheckpointError(model, "it was made in float16", "load it: there is nothing to rescue")
    facts = device_for(request, checkpoint)
    checkpoint = as_loaded_here(checkpoint, facts)
    if checkpoint.quantization or checkpoint.file_format == "gguf":
        what = checkpoint.quantization or checkpoint.file_format
        advice = "rescue the model that it was made of; `safe-dtype plan` shows what this one is loaded in"
        raise CheckpointError(model, f"it is quantized with {what}, and its weights cannot be rescaled", advice)
    plan = make_plan(facts, checkpoint, Policy(max_drift=max_drift), ordered=FLOAT16)
    half = half_of(plan, request, facts, checkpoint, measure=measure, text=text)
    if half is None:
        return None
    why = half.problem or (exceeds(half.drift, max_drift) if half.drift else "its drift was not measured")
    return Rescue(model, checkpoint.saved, facts.name, half, why or None, max_drift)
