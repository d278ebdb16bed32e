"""The rows of the sweep: kept in a file of results by class, and a page of them for people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from results_file import circumstances, write_results

from .subjects import Subject
from .trial import Row

NAME = "architectures"


def rows_in(folder: Path) -> dict[Subject, Row]:
    """Return the rows that a folder of results has, by what they are of."""
    file = folder / f"{NAME}.json"
    if not file.exists():
        return {}
    rows = [
        Row(Subject(kind, one["auto"], name), one.get("inputs", ""), one.get("outcomes", {}), one.get("problem", ""))
        for kind, classes in json.loads(file.read_text(encoding="utf-8"))["figures"].items()
        for name, one in classes.items()
    ]
    return {row.subject: row for row in rows}


def write(rows: Iterable[Row], of: Sequence[Subject], folder: Path) -> None:
    """Write rows to `folder`, as a file of results and as a page, of so many classes as there are."""
    rows = sorted(rows, key=lambda row: (row.subject.model_type, row.subject.model_class))
    figures: dict[str, dict[str, Mapping[str, object]]] = {}
    for row in rows:
        known = {"inputs": row.inputs, "outcomes": dict(row.outcomes), "problem": row.problem}
        figures.setdefault(row.subject.model_type, {})[row.subject.model_class] = {
            "auto": row.subject.auto,
            **{name: value for name, value in known.items() if value},
        }
    write_results(NAME, figures, folder=folder)
    (folder / f"{NAME}.md").write_text(markdown(rows, of), encoding="utf-8")


def markdown(rows: Sequence[Row], of: Sequence[Subject]) -> str:
    """Return the page: a line for all classes of a type of which the same is said."""
    made = [row for row in rows if not row.problem]
    columns = list(dict.fromkeys(asked for row in made for asked in row.outcomes))
    machine, versions = (circumstances()[name] for name in ("machine", "versions"))
    lines = [
        "# Every architecture",
        "",
        f"Written by `python benchmarks/architectures.py` on {machine['cpu']}, with "
        + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        "",
        f"Of {_counted(of)}, {_counted([row.subject for row in rows])} were examined, and "
        f"{_counted([row.subject for row in made])} could be made tiny from their default config and run in plain "
        "transformers, in float32. Each was loaded by safe_dtype from files in the dtype of the column, in that dtype or "
        "as planned, called with inputs in float32, and compared with plain transformers: " + kinds(made) + ".",
        "",
        "`same`: bit for bit what plain transformers gives, its inputs cast by hand. `as close`: products or a scale of "
        "another plan, with no larger error. `rescued`: plain transformers raises there, or gives NaN that float32 does "
        "not; in brackets what was done. Where what both give is far from float32, as a choice of other experts is, its "
        "distance stands behind the word. Words in capitals are faults.",
        "",
        f"| type | classes | inputs | {' | '.join(columns)} |",
        f"|---|---|---|{'---|' * len(columns)}",
    ]  # fmt: skip
    for (model_type, outcomes), alike in _alike(made).items():
        inputs = dict.fromkeys(name for row in alike for name in row.inputs.split(", "))
        cells = [_cell(dict(outcomes).get(asked, "")) for asked in columns]
        lines.append(f"| {model_type} | {_classes(alike)} | {', '.join(inputs)} | {' | '.join(cells)} |")
    lines += ["", "Not compared:", "", "| type | classes | why |", "|---|---|---|"]
    for (model_type, problem), alike in _not_made(rows).items():
        lines.append(f"| {model_type} | {_classes(alike)} | {_cell(problem)} |")
    return "\n".join(lines) + "\n"


def kinds(rows: Iterable[Row]) -> str:
    """Return how often each kind of outcome occurs, in words."""
    counts = Counter(
        outcome.split(" (")[0].split(",")[0].split(" by")[0] for row in rows for outcome in row.outcomes.values()
    )
    return ", ".join(f"{kind} {count}" for kind, count in counts.most_common())


def line_of(row: Row) -> str:
    """Return a row for people."""
    text = row.problem or "; ".join(f"{asked}: {outcome}" for asked, outcome in row.outcomes.items())
    if not row.problem and set(row.outcomes.values()) == {"same"}:
        text = f"same ({row.inputs})"
    return f"{row.subject.model_type:28s} {row.subject.model_class:44s} {row.seconds:5.1f} s {text}"


def _alike(rows: Iterable[Row]) -> dict[tuple[str, tuple[tuple[str, str], ...]], list[Row]]:
    alike: dict[tuple[str, tuple[tuple[str, str], ...]], list[Row]] = {}
    for row in rows:
        alike.setdefault((row.subject.model_type, tuple(row.outcomes.items())), []).append(row)
    return alike


def _not_made(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    alike: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.problem:
            alike.setdefault((row.subject.model_type, row.problem), []).append(row)
    return alike


def _classes(rows: Iterable[Row]) -> str:
    return ", ".join(row.subject.model_class for row in rows)


def _counted(subjects: Sequence[Subject]) -> str:
    return f"{len(subjects)} classes of {len({one.model_type for one in subjects})} types"


def _cell(text: str) -> str:
    return text.replace("|", "\\").replace("<", "&lt;").replace("\n", " ")
