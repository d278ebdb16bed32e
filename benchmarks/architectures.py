"""Every model class that an Auto class of transformers loads, tiny: what safe_dtype makes of it in each dtype.

    python benchmarks/architectures.py                  # all: results/architectures.json, and architectures.md for people
    python benchmarks/architectures.py --rest --seconds 600  # classes without a row, as many as are done by then
    python benchmarks/architectures.py --not-made       # those again of which there was nothing to compare
    python benchmarks/architectures.py llama BertModel  # some types or classes, in place of the rows that they have
    python benchmarks/architectures.py llama --look     # the same, and nothing is written

Each is made from its default config, shrunk, saved in three dtypes, loaded by safe_dtype and by transformers alone, called
with inputs in float32 as a processor returns them, and has to generate where it can. `same` is bit for bit what plain
transformers gives, its inputs cast by hand; `rescued` is where plain transformers raises, or gives NaN that float32 does
not; `as close` is another plan of the same accuracy, exactly rescaled for float16, say. Words in capitals are faults.
"""

from __future__ import annotations

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import click
from architecture_parts.subjects import every_subject
from architecture_parts.table import kinds, line_of, rows_in, write
from architecture_parts.trial import is_fault
from architecture_parts.workers import rows_of
from results_file import RESULTS

_WRITE_EVERY = 40  # rows


@click.command(help=__doc__)
@click.argument("names", nargs=-1)
@click.option("--rest", is_flag=True, help="Only classes that have no row.")
@click.option("--not-made", is_flag=True, help="Only classes of which there was nothing to compare.")
@click.option("--look", is_flag=True, help="Write nothing.")
@click.option("--seconds", type=float, help="Begin no further class after so long.")
@click.option("--workers", default=2, show_default=True, help="Processes side by side.")
@click.option("--limit", default=120.0, show_default=True, help="Seconds for each class.")
def main(  # noqa: PLR0913  # options of a command
    names: tuple[str, ...],
    rest: bool,  # noqa: FBT001  # a flag of a command
    not_made: bool,  # noqa: FBT001  # the same
    look: bool,  # noqa: FBT001  # the same
    seconds: float | None,
    workers: int,
    limit: float,
) -> None:
    """Print a line for each class, and put it into the table."""
    subjects = every_subject()
    table = {subject: row for subject, row in rows_in(RESULTS).items() if subject in set(subjects)}
    chosen = [
        one
        for one in subjects
        if not (rest and one in table)
        and not (not_made and not (one in table and table[one].problem))
        and (not names or one.model_type in names or one.model_class in names)
    ]
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("SAFE_DTYPE_CACHE", cache)
        for row in rows_of(chosen, workers=workers, limit=limit, seconds=seconds):
            rows.append(row)
            table[row.subject] = row
            click.echo(line_of(row))
            if not look and len(rows) % _WRITE_EVERY == 0:
                write(table.values(), subjects, RESULTS)
    if not look:
        write(table.values(), subjects, RESULTS)
    faults = [row for row in rows if is_fault(row)]
    click.echo(
        f"{len(rows)} of {len(chosen)} classes: {kinds(rows)}; not compared {sum(bool(row.problem) for row in rows)}"
    )
    click.echo(f"{len(faults)} with faults" + "".join(f"\n  {line_of(row)}" for row in faults))


if __name__ == "__main__":
    main()
