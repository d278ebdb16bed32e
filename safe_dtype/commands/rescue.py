"""A checkpoint in float16, where it was made in a wider dtype: what `safe-dtype rescue` does."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any
from xml.sax.saxutils import escape

from ..errors import CheckpointError
from ..facts import FLOAT16, Dtype, HalfRange, exceeds, summary
from ..loading import Request, checkpoint_for, device_for, half_of
from ..planning import Policy, make_plan

_LEFT, _ROW, _WIDTH, _TOP = 300, 16, 520, 46  # of the picture, in its units
_LOWEST, _HIGHEST = -4, 24  # powers of two at its edges
_PLAIN, _RESCALED, _END = "#b3552d", "#1f6f8b", "#777"


@dataclass(frozen=True, slots=True)
class Rescue:
    """What it takes to run a checkpoint in float16 on a device, and the verdict."""

    model: str
    saved: Dtype
    device: str
    half: HalfRange
    beyond: str | None  # why float16 does not do; None where it does

    def as_text(self) -> str:
        """Return the verdict, then every gauge with its moves, the islands, and the drift that was measured."""
        half = self.half
        lines = [f"{self.model} (saved in {self.saved}) in float16 on {self.device}: {half}"]
        for gauge, bits in half.rescale.shifts if half.rescale else ():
            lines.append(f"  {gauge.name} 2^-{bits}")
            lines += [f"    {line}" for line in summary(gauge.moves)]
        lines += [f"  in float32: {name}" for name in half.islands]
        if half.drift is not None:
            drift = half.drift
            lines.append(
                f"  against {half.reference}: KL {drift.kl_mean:.3g} nats, {drift.top1_agreement:.2%} of the top tokens "
                f"the same, {drift.positions} positions"
            )
        return "\n".join([*lines, f"NOT in float16: {self.beyond}" if self.beyond else "float16 does."])

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain values. JSON has no infinity: it is the text "inf"."""
        half = self.half
        return {
            "model": self.model, "saved": self.saved.name, "device": self.device, "does": self.beyond is None,
            "beyond": self.beyond, "peak": _number(half.peak), "left": _number(half.left),
            "certified": half.certified, "blocks": [asdict(one) for one in half.block_peaks],
            "rescale": half.rescale.to_dict() if half.rescale else None, "islands": list(half.islands),
            "drift": {name: _number(one) for name, one in asdict(half.drift).items()} if half.drift else None,
            "reference": half.reference.name,
        }  # fmt: skip

    def as_svg(self) -> str:
        """Return a picture: the largest |number| of every block as it is and rescaled, and where float16 ends."""
        rows = []
        for place, one in enumerate(self.half.block_peaks):
            y = _TOP + place * _ROW
            rows.append(f'<text x="{_LEFT - 8}" y="{y + 10}" text-anchor="end">{escape(one.block)}</text>')
            for value, colour, top in ((one.plain, _PLAIN, y + 1), (one.rescaled, _RESCALED, y + 7)):
                rows.append(
                    f'<rect x="{_LEFT}" y="{top}" width="{_x(value) - _LEFT:.1f}" height="5" fill="{colour}"/>'
                )
        bottom = _TOP + len(self.half.block_peaks) * _ROW + 6
        end = _x(FLOAT16.largest)
        rows.append(f'<path d="M{end:.1f} {_TOP - 6}V{bottom}" stroke="{_END}" stroke-dasharray="3 3"/>')
        rows.append(f'<text x="{end:.1f}" y="{_TOP - 10}" text-anchor="middle">65504</text>')
        title = f"{self.model}: largest |hidden state| of every block"
        keys = (("as saved", _PLAIN, _LEFT), ("rescaled", _RESCALED, _LEFT + 90))
        rows += [f'<text x="{x}" y="32" fill="{colour}">{name}</text>' for name, colour, x in keys]
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 20} {bottom + 10}" '
            f'font-family="sans-serif" font-size="11"><text x="6" y="16" font-weight="bold">{escape(title)}</text>'
            f"{''.join(rows)}</svg>\n"
        )


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
    request = Request(model, {"revision": revision, "device_map": device, "dtype": "float16"})
    checkpoint = checkpoint_for(request)
    if checkpoint.saved == FLOAT16:
        raise CheckpointError(model, "it was made in float16", "load it: there is nothing to rescue")
    facts = device_for(request, checkpoint)
    plan = make_plan(facts, checkpoint, Policy(max_drift=max_drift), ordered=FLOAT16)
    half = half_of(plan, request, facts, checkpoint, measure=True, text=text)
    if half is None:
        raise CheckpointError(model, "nothing was measured", "report this")
    why = half.problem or (exceeds(half.drift, max_drift) if half.drift else "its drift was not measured")
    return Rescue(model, checkpoint.saved, facts.name, half, why or None)


def _x(value: float) -> float:
    power = math.log2(value) if value > 0 else _LOWEST
    return _LEFT + (min(max(power, _LOWEST), _HIGHEST) - _LOWEST) / (_HIGHEST - _LOWEST) * _WIDTH


def _number(value: Any) -> Any:
    return "inf" if isinstance(value, float) and math.isinf(value) else value
