"""A report of a guarded model as the text of an issue."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from ..failure import Event, Report
from .learn import without_personal_paths

_PACKAGES = ("safe_dtype", "torch", "transformers", "accelerate")


def issue_text(report: Report) -> str:
    """Return Markdown: versions, each failure that was learned with its trials, the events with their texts, and the errors that ended calls.

    Personal paths are shortened, and tokens of the Hub masked.
    """
    lines = [
        f"**{report.model}** in {report.dtype}",
        "",
        f"- Python {platform.python_version()}, {platform.platform()}",
    ]
    lines += [f"- {name} {_version(name)}" for name in _PACKAGES]
    for failure in report.learned:
        where = f" (`{failure.module}`)" if failure.module else ""
        lines += [
            "",
            f"### {failure.error} in {failure.op}{where}",
            "",
            f"{failure.dtype} on {failure.device}, {failure.family}",
        ]
        lines += ["", "```", failure.text or "(no text)", "```", "", *(f"- {trial}" for trial in failure.trials)]
        lines.append(f"- works in: {', '.join(failure.works_in) or 'no other dtype'}")
    if report.events:
        lines += ["", "### Events", "", *(line for event in report.events for line in _event(event))]
    if report.refusals:
        lines += ["", "### Calls that were not cured", ""]
        lines += [line for text in report.refusals for line in ("```", *text.splitlines(), "```", "")]
    return without_personal_paths("\n".join(lines))


def _event(event: Event) -> Iterator[str]:
    yield f"- {event}"
    yield from ("", "  ```", *(f"  {line}" for line in event.message.splitlines() or ["(no text)"]), "  ```", "")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
