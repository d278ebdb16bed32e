"""What went wrong, and what was done about it. Nouns only: nothing here catches, decides or changes a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from ..facts import Dtype, LearnedFailure, Rescale, factor_of, summary
from ..planning import Plan


class FailureKind(str, Enum):
    """What another dtype, another kernel or another form of the model can cure."""

    OP_UNSUPPORTED = "op_unsupported"  # no kernel of this operation for this dtype on this device
    KERNEL_ARCH = "kernel_arch"  # a kernel exists, and this device is too old or too new for it
    DTYPE_MISMATCH = "dtype_mismatch"  # two floating dtypes met in one operation
    NONFINITE = "nonfinite"  # NaN or Inf where numbers are used, or values pinned to the end of the range
    POLICY_REFUSAL = "policy_refusal"  # a library refuses the dtype by its own table
    EXPORT_GRAPH = "export_graph"  # a tracer or another runtime cannot take the graph; a dtype may be the cause

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Failure:
    """One failure that is ours to cure.

    `dtype` is the one that failed, None where the text names none. `allowed` are the dtypes that the text itself
    names as working. `sticky`: the process has lost its device, and nothing can be retried in it.
    """

    kind: FailureKind
    message: str  # the whole text
    dtype: Dtype | None = None
    dtypes: tuple[Dtype, ...] = ()  # every floating dtype that the text names, in its order; both of a mismatch
    allowed: tuple[Dtype, ...] = ()
    sticky: bool = False
    device: str | None = None
    module: str | None = None  # name of the module in the model, as in `named_modules()`
    step: int | None = None  # of the generation, 0 is the prefill; outside `generate`, of all the calls
    largest_input: float | None = None  # largest finite |input| of the blamed module


@dataclass(frozen=True, slots=True)
class Attempt:
    """One remedy that was tried on a failure, and what came of it."""

    remedy: str
    outcome: str

    def __str__(self) -> str:
        return f"{self.remedy}: {self.outcome}"


@dataclass(frozen=True, slots=True)
class Event:
    """One failure and the remedy that was applied to it. `after` is None where nothing could be done."""

    kind: FailureKind
    before: Dtype
    after: Dtype | None
    module: str | None  # as in `named_modules()`
    step: int  # of the generation, 0 is the prefill; outside `generate`, of all the calls
    remedy: str
    message: str  # the text of the exception, or what is wrong with the numbers
    milliseconds: float = 0.0  # for finding out and changing the model; the step itself runs again on top
    grown_bytes: int = 0
    largest_input: float | None = None  # largest finite |input| of the module
    restarted: bool = False  # the generation began anew instead of going on from the step
    tried: tuple[Attempt, ...] = ()  # what was tried before the remedy, and why it was not that
    autocast: str = ""  # the caller's own, where the step failed for it

    def __str__(self) -> str:
        where = f" in {self.module}" if self.module else ""
        cost = f"{self.milliseconds:.0f} ms, {self.grown_bytes:+,} bytes"
        begun = ", from the beginning" if self.restarted else ""
        under = f", under {self.autocast}" if self.autocast else ""
        return f"step {self.step}: {self.kind}{where} ({self.before}{under}) -> {self.remedy}{begun} [{cost}]"


@dataclass(frozen=True, slots=True)
class Report:
    """What happened to a guarded model."""

    model: str
    dtype: Dtype | None  # of most of its numbers, now
    ladder: tuple[Dtype, ...]  # where it may still go on
    events: tuple[Event, ...]
    rescale: Rescale | None = None  # in force now; None: nothing was rescaled
    islands: tuple[str, ...] = ()  # modules that are computed in float32 in a model in 16 bit
    learned: tuple[LearnedFailure, ...] = ()  # failures of texts that nobody knew, found out by experiment
    refusals: tuple[str, ...] = ()  # errors that ended calls: ours, and those that no dtype cures
    devices: tuple[str, ...] = ()  # that hold its parameters, by torch's names
    plan: Plan | None = None  # that it was loaded by

    def as_issue(self) -> str:
        """Return the report as the text of an issue, in Markdown: versions, devices, plan, trials, events.

        Personal paths are replaced.
        """
        from .diagnosis.issue_text import issue_text  # which is about this noun

        return issue_text(self)

    def __str__(self) -> str:
        head = f"{self.model} in {self.dtype}, {len(self.events)} event{'s' * (len(self.events) != 1)}"
        lines = [head]
        for gauge, bits in self.rescale.shifts if self.rescale else ():
            lines.append(f"  rescaled exactly: {gauge.name} {factor_of(bits)}")
            lines += [f"    {line}" for line in summary(gauge, bits)]
        lines += [f"  in float32: {name}" for name in self.islands]
        for event in self.events:
            lines += [f"  {event}", *(f"    instead of {attempt}" for attempt in event.tried)]
        lines += [f"  ended a call: {text}" for text in self.refusals]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from ..rendering.notebook import html_table, notebook, paragraph  # rich takes 50 ms, and only readers need it
        from ..rendering.tables import Column

        without = replace(self, events=(), refusals=())
        columns = (Column("step", number=True), *map(Column, ("what", "where", "in", "remedy", "cost")))
        rows = [
            (
                str(event.step), str(event.kind), event.module or "", str(event.before),
                event.remedy + ", from the beginning" * event.restarted,
                f"{event.milliseconds:.0f} ms, {event.grown_bytes:+,} bytes",
            )
            for event in self.events
        ]  # fmt: skip
        ended = [f"ended a call: {text}" for text in self.refusals]
        head = f"{self.model} in {self.dtype}: {len(rows)} event{'s' * (len(rows) != 1)}"
        lines = [head, *str(without).splitlines()[1:]]
        return notebook(paragraph(lines), html_table(columns, rows), paragraph(ended))
