"""The plan: the dtypes to load and compute in, and every candidate with the reason for its verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum
from typing import Any

from ..facts import Dtype, Rescale, VerdictKind
from .made_for import MadeFor
from .matmul_routes import Routes
from .mixed_dtypes import RoundedTensors
from .policy import Policy

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Candidate:
    """Weights stored in one dtype, products computed in one dtype."""

    storage: Dtype
    compute: Dtype
    codes: Dtype | None = (
        None  # what linear weights are held in: INT8, INT4, or 16 bit of float32; None: they are in `storage`
    )

    @property
    def stored(self) -> str:
        """What the weights are in: 'bfloat16', or 'int8, rest bfloat16'."""
        return self.storage.name if self.codes is None else f"{self.codes}, rest {self.storage}"

    def __str__(self) -> str:
        if self.storage == self.compute:
            return self.stored
        return f"{self.stored} stored, {self.compute} computed"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a candidate is predicted to take for the policy's workload. Seconds are None without measured rates."""

    prefill_seconds: float | None
    decode_seconds: float | None  # all new tokens together
    weight_bytes: int
    cache_bytes: int  # keys and values of prompt and new tokens
    work_bytes: int  # activations of the prompt, or the largest tensor on its way in less the cache, the larger one
    product_seconds: float | None = None  # of `seconds`: products with weights
    attention_seconds: float | None = None  # of `seconds`: attention, and reading the cache

    @property
    def seconds(self) -> float | None:
        """Prefill and decode together."""
        if self.prefill_seconds is None or self.decode_seconds is None:
            return None
        return self.prefill_seconds + self.decode_seconds

    @property
    def bytes(self) -> int:
        """The peak of memory on the device."""
        return self.weight_bytes + self.cache_bytes + self.work_bytes


class Ground(str, Enum):
    """On what ground a candidate was rejected."""

    WRONG = "wrong"
    UNSUPPORTED = "unsupported"
    CRASHES = "crashes"
    UNKNOWN = "unknown"
    RANGE = "range"  # the checkpoint's numbers may not fit
    ROUNDING = "rounding"  # the checkpoint's numbers lose bits, and nobody measured what that does
    DRIFT = "drift"  # ... and it was measured to do too much
    LEARNED = "learned"  # an earlier guarded run of this very checkpoint failed in it
    MEMORY = "memory"
    LADDER = "ladder"  # the policy's ladder leaves it out

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict on one candidate. `ground` is None where it was accepted."""

    candidate: Candidate
    ground: Ground | None
    reason: str
    cost: Cost
    slowdown: float | None = None  # float32's prefill rate over this dtype's; None where not measured
    max_rel_error: float | None = None
    attention: str | None = None  # the attn_implementation that this dtype needs here; None: transformers' choice
    routes: Routes | None = None  # how its products are computed; None without measured rates
    kind: VerdictKind = VerdictKind.UNKNOWN  # of its products on the device
    times_float32: float | None = None  # its peak arithmetic over float32's, by the maker; None: measured, or unknown
    pending: bool = False  # its range or rounding is measured at the first load, and taken to be well until then

    @property
    def accepted(self) -> bool:
        """Whether this candidate may be used."""
        return self.ground is None

    def __repr__(self) -> str:
        verdict = "accepted" if self.accepted else f"rejected for {self.ground}"
        return f"<Decision: {self.candidate} {verdict}>"


@dataclass(frozen=True, slots=True)
class WayToFit:
    """One way to run a checkpoint on a device that it does not fit on as it is."""

    name: str
    weight_bytes: int  # on the device; over several devices on each
    cache_bytes: int  # keys and values of the workload
    total_bytes: int  # with activations: the peak
    fits: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to load, in which dtype, on what device, and why."""

    source: str
    device: str
    device_name: str
    measured: bool  # False: planned from the prior table for a device that is not here
    saved: Dtype
    storage: Dtype
    compute: Dtype
    reason: str
    policy: Policy
    ladder: tuple[Dtype, ...]  # where to go on, the plan's own dtype first
    decisions: tuple[Decision, ...]
    attention: str | None = None
    device_map: str | None = None  # "auto" where the model does not fit on the device whole
    quantization: str | None = None  # set: the quantizer's own dtype rule holds, ours does not
    dequantized: bool = False  # transformers dequantizes what the files hold, and `saved` is what comes of it
    ordered: Dtype | None = None  # the dtype that the caller passed
    routes: Routes | None = None  # how products are computed; None without measured rates
    rescale: Rescale | None = None  # powers of two moved between layers, so that float16 holds the activations
    islands: tuple[str, ...] = ()  # modules in float32 inside a model in float16
    stored: bool = False  # rescale and islands were read from beside the weights
    recipe: str = ""  # rescale and islands are of this recipe on the Hub, which the load has to prove
    warnings: tuple[str, ...] = ()
    made_for: MadeFor | None = None  # None: nobody knows, and it is used for whatever it is passed with
    ways: tuple[WayToFit, ...] = ()  # what would fit; empty where the plan does, or nobody knows
    has_tokens: bool = True  # False: it takes images or sound, and the policy's tokens are rows of its products
    takes: str = "tokens"  # what one call is made of: "tokens", "images", "audio" or "inputs"
    rounded: RoundedTensors | None = None  # what loses bits on loading; None: nothing, or a quantizer decides
    codes: Dtype | None = (
        None  # what linear weights are held in: INT8, INT4, or 16 bit of float32; None: they are in `storage`
    )

    @property
    def chosen(self) -> Decision | None:
        """The decision on the plan's own candidate; None where a quantizer decides."""
        wanted = Candidate(self.storage, self.compute, self.codes)
        return next((one for one in self.decisions if one.candidate == wanted), None)

    @property
    def pending(self) -> bool:
        """Whether the plan rests on a measurement that the first load makes, and may come out otherwise then."""
        return self.chosen is not None and self.chosen.pending

    @property
    def cost(self) -> Cost | None:
        """Predicted seconds and bytes of the plan's own candidate."""
        return self.chosen.cost if self.chosen else None

    @property
    def what(self) -> str:
        """What is loaded, and what else is set for it: 'bfloat16 stored, float32 computed, layout=blocks'."""
        layout = self.routes.layout if self.routes and self.routes.layout == "blocks" else None
        compiled = self.routes.compiled_rows if self.routes else 0
        rows = f"compiled for {compiled} row{'s' if compiled > 1 else ''}" if compiled else None
        settings = (
            ("layout", layout),
            ("products", rows),
            ("attn_implementation", self.attention),
            ("device_map", self.device_map),
        )
        dtypes = str(self.chosen.candidate if self.chosen else self.storage)
        return ", ".join([dtypes, *(f"{name}={value}" for name, value in settings if value)])

    @property
    def where(self) -> str:
        """The device, by its product's name and by torch's: 'AMD EPYC (cpu)'."""
        return self.device_name if self.device_name == self.device else f"{self.device_name} ({self.device})"

    @property
    def summary(self) -> str:
        """What is loaded, where and why, in one line."""
        return f"{self.source} in {self.what} on {self.where}: {self.reason}"

    def __repr__(self) -> str:
        return f"<Plan: {self.source} in {self.what} on {self.where}>"

    def _repr_html_(self) -> str:
        from .explain import plan_html

        return plan_html(self)

    def explain(self, *, width: int = 110) -> str:
        """Return the plan as a table for people, at most `width` columns wide."""
        from .explain import plan_text  # rich takes 50 ms to import, and only readers need it

        return plan_text(self, width=width)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values: dtypes by name, costs with their sums, the schema's version first."""
        decisions = [
            {
                **_plain(decision),
                "accepted": decision.accepted,
                "cost": {**_plain(decision.cost), "seconds": decision.cost.seconds, "bytes": decision.cost.bytes},
            }
            for decision in self.decisions
        ]
        rescale = self.rescale.to_dict() if self.rescale else None
        return {
            "schema": SCHEMA_VERSION,
            **_plain(replace(self, rescale=None)),
            "rescale": rescale,
            "pending": self.pending,
            "policy": str(self.policy),
            "decisions": decisions,
        }

    def to_json(self, *, indent: int | None = None) -> str:
        """Return `to_dict()` as JSON."""
        return json.dumps(self.to_dict(), indent=indent)


def best_first(plan: Plan, size: Callable[[Cost], float] = lambda _cost: 0.0) -> list[Decision]:
    """Return the decisions as they are shown: what is chosen, what is accepted, the rest; within each the smallest first."""
    chosen = plan.chosen
    return sorted(plan.decisions, key=lambda one: (one is not chosen, not one.accepted, size(one.cost)))


def fate(decision: Decision, plan: Plan) -> str:
    """Return what a picture says of a candidate: "chosen", "rejected", or nothing."""
    return "chosen" if decision is plan.chosen else "" if decision.accepted else "rejected"


def _plain(noun: Any) -> dict[str, Any]:
    return {field.name: _plain_value(getattr(noun, field.name)) for field in fields(noun)}


def _plain_value(value: Any) -> Any:
    if isinstance(value, (Dtype, Enum)):
        return str(value)
    if isinstance(value, tuple):
        return [_plain_value(one) for one in value]
    if is_dataclass(value):
        return _plain(value)
    return value
