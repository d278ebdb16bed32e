"""Every model class that an Auto class of transformers loads, tiny: what safe_dtype makes of it in each dtype.

    python benchmarks/architectures.py                     # one class of each type: results/architectures.md
    python benchmarks/architectures.py --rest --seconds 600  # types that it has no row of, as many as are done by then
    python benchmarks/architectures.py llama BertModel     # some types or classes, and nothing is written
    python benchmarks/architectures.py --all-classes       # all classes of all types, and nothing is written

Each is made from its default config, shrunk, saved in three dtypes, loaded by safe_dtype and by transformers alone, called
with inputs in float32 as a processor returns them, and has to generate where it can. `same` is bit for bit what plain
transformers gives, its inputs cast by hand; `rescued` is where plain transformers raises, or gives NaN that float32 does
not; `as close` is another plan of the same accuracy, exactly rescaled for float16, say. Words in capitals are faults.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable

os.environ["HF_HUB_OFFLINE"] = "1"

import click
from architecture_parts.subjects import by_type, every_subject
from architecture_parts.trial import Row, is_fault
from architecture_parts.workers import rows_of
from results_file import RESULTS, circumstances

TABLE = RESULTS / "architectures.md"


def table(rows: Iterable[Row], of: int) -> str:
    """Return the table, in Markdown, of so many of the `of` types that there are."""
    rows = sorted(rows, key=lambda row: (row.model_type, row.model_class))
    made = [row for row in rows if not row.problem]
    columns = list(dict.fromkeys(asked for row in made for asked in row.outcomes))
    counts = Counter(outcome.split(" (")[0].split(" by")[0] for row in made for outcome in row.outcomes.values())
    machine, versions = (circumstances()[name] for name in ("machine", "versions"))
    lines = [
        "# Every architecture",
        "",
        f"Written by `python benchmarks/architectures.py` on {machine['cpu']}, with "
        + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        "",
        f"{len(rows)} of the {of} types of models were examined, and {len(made)} of them could be made tiny from their default "
        "config and run in plain transformers, in float32. Each was loaded by safe_dtype from files in the dtype of the column, in that dtype or as "
        "planned, called with inputs in float32, and compared with plain transformers: "
        + ", ".join(f"{kind} {count}" for kind, count in counts.most_common()) + ".",
        "",
        "`same`: bit for bit what plain transformers gives, its inputs cast by hand. `as close`: products or a scale of "
        "another plan, with no larger error. `rescued`: plain transformers raises there, or gives NaN that float32 does not; "
        "in brackets what was done. Words in capitals are faults.",
        "",
        f"| type | class | inputs | {' | '.join(columns)} |",
        f"|---|---|---|{'---|' * len(columns)}",
    ]  # fmt: skip
    for row in made:
        cells = [_cell(row.outcomes.get(asked, "")) for asked in columns]
        lines.append(f"| {row.model_type} | {row.model_class} | {row.inputs} | {' | '.join(cells)} |")
    lines += ["", "Not compared:", "", "| type | class | why |", "|---|---|---|"]
    lines += [f"| {row.model_type} | {row.model_class} | {_cell(row.problem)} |" for row in rows if row.problem]
    return "\n".join(lines) + "\n"


def rows_in(text: str) -> list[Row]:
    """Return the rows of a table."""
    rows: list[Row] = []
    columns: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| type | class |"):
            columns = cells[3:]  # none where it is said why there are no outcomes
        elif line.startswith("| ") and columns:
            outcomes = dict(zip(columns, cells[3:], strict=True))
            outcomes = {asked: outcome for asked, outcome in outcomes.items() if outcome}
            rows.append(Row(cells[0], cells[1], cells[2], outcomes))
        elif line.startswith("| "):
            rows.append(Row(cells[0], cells[1], problem=cells[2]))
    return rows


def _cell(text: str) -> str:
    return text.replace("|", "\\").replace("<", "&lt;").replace("\n", " ")


def line_of(row: Row) -> str:
    """Return a row for people."""
    said = row.problem or "; ".join(f"{asked}: {outcome}" for asked, outcome in row.outcomes.items())
    same = not row.problem and set(row.outcomes.values()) == {"same"}
    return f"{row.model_type:28s} {row.model_class:44s} {row.seconds:5.1f} s {'same' if same else said}"


@click.command(help=__doc__)
@click.argument("names", nargs=-1)
@click.option("--all-classes", is_flag=True, help="Every class, not one of each type.")
@click.option("--rest", is_flag=True, help="Only types that the table has no row of: they are added to it.")
@click.option("--seconds", type=float, help="Begin no further class after so long.")
@click.option("--workers", default=2, show_default=True, help="Processes side by side.")
@click.option("--limit", default=120.0, show_default=True, help="Seconds for each class.")
def main(
    names: tuple[str, ...],
    all_classes: bool,  # noqa: FBT001  # a flag of a command
    rest: bool,  # noqa: FBT001  # the same
    seconds: float | None,
    workers: int,
    limit: float,
) -> None:
    """Print a line for each class; write the table when nothing was chosen."""
    subjects = every_subject()
    types = by_type(subjects)
    before = rows_in(TABLE.read_text(encoding="utf-8")) if rest else []
    known = {row.model_type for row in before}
    chosen = [(one,) for one in subjects] if all_classes else [one for one in types if one[0].model_type not in known]
    if names:
        chosen = [(one,) for one in subjects if one.model_class in names] + [
            classes for classes in chosen if classes[0].model_type in names
        ]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["SAFE_DTYPE_CACHE"] = cache
        for row in rows_of(chosen, workers=workers, limit=limit, seconds=seconds):
            rows.append(row)
            click.echo(line_of(row))
    faults = [row for row in rows if is_fault(row)]
    click.echo(
        f"{len(rows)} classes, {sum(bool(row.problem) for row in rows)} not compared, {len(faults)} with faults"
    )
    if not names and not all_classes:
        TABLE.write_text(table([*before, *rows], len(types)), encoding="utf-8")


if __name__ == "__main__":
    main()
