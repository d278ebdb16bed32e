"""What a maintainer needs to see of a machine, as the text of an issue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..facts import DeviceFacts, LearnedFailure
from ..guarding.diagnosis.issue_text import lesson_lines, version_lines
from ..guarding.diagnosis.learn import without_personal_paths
from .doctor import device_text

_WIDTH = 110  # columns of its tables


def machine_issue(devices: Mapping[DeviceFacts, Iterable[LearnedFailure]], *, model: str = "", plan: str = "") -> str:
    """Return Markdown: versions, the plan of `model`, what failed before, and folded what was measured of each device.

    Personal paths are shortened, and tokens of the Hub masked. `plan` is the plan as text, or the error in its place.
    """
    lines = [
        "### What happened",
        "",
        "(what you ran, what you expected, and what came instead)",
        "",
        "### Versions",
        "",
    ]
    lines += version_lines()
    lines += [f"- {facts.device}: {facts.name}" for facts in devices]
    if model:
        lines += ["", f"### Plan of {model}", "", *_fenced(plan)]
    for lessons in devices.values():
        for failure in lessons:
            lines += lesson_lines(failure)
    for facts in devices:  # long, and seldom the reason: folded, so that an issue is one screen
        lines += ["", f"<details><summary>What was measured of {facts.device}, {facts.name}</summary>", ""]
        lines += [*_fenced(device_text(facts, width=_WIDTH)), "", "</details>"]
    return without_personal_paths("\n".join(lines))


def _fenced(text: str) -> list[str]:
    return ["```text", *(line.rstrip() for line in text.splitlines()), "```"]
