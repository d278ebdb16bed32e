"""The plan of a whole pipeline: one of each of its models, explained together."""

from __future__ import annotations

from dataclasses import dataclass

from ...facts import Dtype
from ...planning import Plan
from ...rendering.tables import Column, page, table
from ...rendering.units import bytes_text

_DENOISERS = ("transformer", "unet", "prior", "transformer_2")


@dataclass(frozen=True)
class PipelinePlan:
    """What each model of a pipeline is loaded in, and why."""

    source: str
    pipeline: str  # the name of the class
    parts: tuple[tuple[str, Plan], ...]
    unplanned: tuple[tuple[str, str], ...] = ()  # models that are loaded as they are, each with the reason

    @property
    def plans(self) -> dict[str, Plan]:
        """The plan of each part by its name."""
        return dict(self.parts)

    @property
    def main(self) -> Plan | None:
        """The plan of the part that does most of the work: the one that is called at every step."""
        plans = self.plans
        named = next((plans[name] for name in _DENOISERS if name in plans), None)
        return named or max(plans.values(), key=_weight_bytes, default=None)

    @property
    def dtypes(self) -> dict[str, Dtype]:
        """What the weights of each part are loaded in."""
        return {name: plan.storage for name, plan in self.parts}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the caller should know, each of it once."""
        return tuple(dict.fromkeys(text for _, plan in self.parts for text in plan.warnings))

    @property
    def summary(self) -> str:
        """What is loaded, where and why, in one line."""
        main = self.main
        if main is None:
            return f"{self.source}: none of its models is planned"
        by_dtype: dict[str, list[str]] = {}
        for name, plan in self.parts:
            by_dtype.setdefault(plan.storage.name, []).append(name)
        loaded = "; ".join(f"{', '.join(names)} in {dtype}" for dtype, names in by_dtype.items())
        return f"{self.source}: {loaded} on {main.where}: {main.reason}"

    def explain(self, *, width: int = 110) -> str:
        """Return the plan as a table for people, at most `width` columns wide: a row a part."""
        rows = [
            (
                name,
                plan.saved.name,
                plan.what,
                "?" if plan.cost is None else bytes_text(_weight_bytes(plan)),
                plan.reason,
            )
            for name, plan in self.parts
        ]
        rows += [(name, "?", "as it is", "?", f"not planned: {reason}") for name, reason in self.unplanned]
        columns = (
            Column("part"), Column("saved"), Column("loaded"), Column("weights", number=True), Column("because", wraps=True)
        )  # fmt: skip
        where = f" on {self.main.where}" if self.main else ""
        headline = f"{self.source} ({self.pipeline}){where}, part by part:"
        notes = [*self.warnings, *([_MIXED] if len(set(self.dtypes.values())) > 1 else [])]
        return page([headline, "", table(columns, rows), *([""] if notes else []), *notes], width=width)


_MIXED = "What one part hands to another in another dtype is cast as it enters."


def _weight_bytes(plan: Plan) -> int:
    return plan.cost.weight_bytes if plan.cost else 0
