"""A report of a guarded model as the text of an issue."""

from __future__ import annotations

import platform
from collections.abc import Iterator

from ...devices.inventory import identity_of
from ...errors import NoSuchDeviceError
from ...facts import LearnedFailure
from ...planning import Plan
from ...store.installed import installed_version
from ..failure import Event, Report
from .learn import without_personal_paths

_PACKAGES = ("safe_dtype", "torch", "transformers", "accelerate")


def issue_text(report: Report) -> str:
    """Return Markdown: versions, devices, the plan, each failure that was learned with its trials, events, and errors that ended calls.

    Events and errors come with their texts. Personal paths are shortened, and tokens of the Hub masked.
    """
    lines = [f"**{report.model}** in {report.dtype}", "", *version_lines(), *map(_device_line, report.devices)]
    if report.plan is not None:
        lines += ["", "### Plan", "", *_plan_lines(report.plan)]
    for failure in report.learned:
        lines += lesson_lines(failure)
    if report.events:
        lines += ["", "### Events", "", *(line for event in report.events for line in _event(event))]
    if report.refusals:
        lines += ["", "### Calls that were not cured", ""]
        lines += [line for text in report.refusals for line in ("```", *text.splitlines(), "```", "")]
    return without_personal_paths("\n".join(lines))


def version_lines() -> list[str]:
    """Return Python, the system and the versions of what a model runs on, as items of a list."""
    python = f"- Python {platform.python_version()}, {platform.platform()}"
    return [python, *(f"- {name} {installed_version(name) or 'not installed'}" for name in _PACKAGES)]


def lesson_lines(failure: LearnedFailure) -> list[str]:
    """Return a section about a failure that was found out by experiment: the module, its text, and each trial."""
    where = f" (`{failure.module}`)" if failure.module else ""
    return [
        "", f"### {failure.error} in {failure.op}{where}",
        "", f"{failure.dtype} on {failure.device}, {failure.family}",
        "", "```", failure.text or "(no text)", "```",
        "", *(f"- {trial}" for trial in failure.trials),
        f"- works in: {', '.join(failure.works_in) or 'no other dtype'}",
    ]  # fmt: skip


def _device_line(device: str) -> str:
    try:
        facts = identity_of(device)
    except NoSuchDeviceError:  # such as "meta"
        return f"- {device}"
    return f"- {device}: {facts.name}" + (f", {facts.capability}" if facts.capability else "")


def _plan_lines(plan: Plan) -> Iterator[str]:
    yield f"- {plan.summary}"
    yield f"- policy: {plan.policy}"
    for decision in plan.decisions:
        verdict = "accepted" if decision.accepted else f"rejected for {decision.ground}"
        yield f"- {decision.candidate}: {verdict}: {decision.reason}"


def _event(event: Event) -> Iterator[str]:
    yield f"- {event}"
    yield from ("", "  ```", *(f"  {line}" for line in event.message.splitlines() or ["(no text)"]), "  ```", "")
