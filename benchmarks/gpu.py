"""What only a GPU can show, in less than eight minutes, offline: a part a process, each with a limit of its own.

    python benchmarks/gpu.py                                # the first CUDA device
    python benchmarks/gpu.py --parts probe,decoding --out .
    python benchmarks/gpu.py --device cpu                   # the same lines with tiny models: only that they run

Written after every row, so that an end from outside loses nothing: `results/gpu-NAME.json` and a table beside it,
`gpu-NAME.md`. A part that fails is written with its error, one for which no time is left with the reason, and the rest
goes on. The tests of the last part need the test extra; nothing else does.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import click
from results_file import RESULTS, write_results

from safe_dtype.processes.termination import tidy_termination
from safe_dtype.rendering.markdown import inline, table

HERE = Path(__file__).resolve().parent
BUDGET = 465.0  # seconds for all parts: the rest of eight minutes is for starting and writing
SHORTEST = 20.0  # seconds: with less than that left a part would only import

# The most seconds of each part, in the order in which they run: what tells most for its time comes first.
PARTS = {
    "probe": 45.0,
    "decoding": 75.0,
    "recovery": 45.0,
    "lost": 45.0,
    "overflow": 180.0,
    "graphs": 90.0,
    "own_tests": 110.0,
    "optimizing": 200.0,
}


@dataclass
class Part:
    """What a part has shown so far."""

    name: str
    limit_s: float
    outcome: str = "running"
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)


def run_part(name: str, device: str, sizes: str, limit: float) -> Iterator[Part]:
    """Run one part in a process of its own; yield it after every row, and at last with how it ended."""
    part, started = Part(name, limit), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows, log = Path(folder) / "rows", Path(folder) / "log"
        command = [sys.executable, __file__, "--in-child", f"part {name}", device, sizes, str(rows)]
        rows.touch()
        with log.open("wb") as output:
            environment = os.environ | {"SAFE_DTYPE_CACHE": os.environ.get("SAFE_DTYPE_CACHE", f"{folder}/cache")}
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=environment,
            )
        try:
            while child.poll() is None and time.monotonic() - started < limit:
                time.sleep(0.2)
                if len(lines := rows.read_text().splitlines()) > len(part.rows):
                    part.rows, part.seconds = [json.loads(line) for line in lines], time.monotonic() - started
                    yield part
        finally:
            is_over = child.poll() is not None
            with suppress(ProcessLookupError):  # it may have left children of its own
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        part.rows, part.seconds = (
            [json.loads(line) for line in rows.read_text().splitlines()],
            time.monotonic() - started,
        )
        last_words = " ".join(log.read_text(errors="replace").strip().splitlines()[-8:])[-1200:]
    part.outcome = _outcome(child.returncode if is_over else None, limit, last_words)
    yield part


def _outcome(status: int | None, limit: float, last_words: str) -> str:
    if status == 0:
        return "done"
    how = f"stopped at its limit of {limit:.0f} s" if status is None else f"failed with status {status}"
    return f"{how}: {last_words}"


def run_all(names: list[str], device: str, sizes: str, budget: float) -> Iterator[list[Part]]:
    """Yield every part so far, after each row of each."""
    started, parts = time.monotonic(), list[Part]()
    for name in names:
        left = budget - (time.monotonic() - started)
        if left < SHORTEST:
            parts.append(Part(name, 0.0, f"skipped: {left:.0f} s of {budget:.0f} s were left"))
            yield parts
            continue
        limit = PARTS[name] if sizes == "real" else 4 * PARTS[name]  # a GPU's host imports faster
        for part in run_part(name, device, sizes, min(limit, left)):
            yield [*parts, part]
        parts.append(part)


def markdown(parts: list[Part]) -> str:
    """Return every part as a table: a column for each name in its rows, in the order of their coming."""
    lines = []
    for part in parts:
        lines += [f"## {part.name}", "", f"{part.seconds:.0f} s: {inline(part.outcome)}", ""]
        by_columns: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for row in part.rows:
            by_columns.setdefault(tuple(row), []).append(row)
        for names, rows in by_columns.items():
            lines += [*table(names, ([_cell(value) for value in row.values()] for row in rows)), ""]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return inline("; ".join(map(str, value)))
    return "" if value is None else inline(f"{value:,}" if type(value) is int else str(value))


def in_child(what: str, device: str, *arguments: str) -> None:
    """Do one thing that has to have a process of its own."""
    from gpu_parts.rehearsing import prepare

    where = prepare(device)  # before transformers is imported, which looks for accelerators
    from gpu_parts.place import Place

    if not what.startswith("part "):
        from gpu_parts import lost

        click.echo(lost.CHILDREN[what](Place(where, is_tiny=True)))
        return
    sizes, file = arguments
    part = importlib.import_module(f"gpu_parts.{what.removeprefix('part ')}")
    with Path(file).open("a", encoding="utf-8") as writes:
        for row in part.rows(Place(where, is_tiny=sizes == "tiny")):
            writes.write(json.dumps(row) + "\n")
            writes.flush()


@click.command()
@click.option("--device", default="cuda", show_default=True, help="Of torch, or 'rehearsal': that of the tests.")
@click.option(
    "--sizes", type=click.Choice(["real", "tiny"]), help="Of the models.  [default: real on cuda, else tiny]"
)
@click.option("--parts", default=",".join(PARTS), show_default=True, help="Comma-separated, in their order.")
@click.option("--budget", default=BUDGET, show_default=True, help="Seconds for all parts.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, help="The folder to write to.")
@click.option("--name", help="Of the files, after 'gpu-'.  [default: the device's own name]")
def main(*, device: str, sizes: str | None, parts: str, budget: float, out: Path, name: str | None) -> None:
    """Measure on a GPU, and write the figures and a table of them."""
    names = parts.split(",")
    if unknown := [part for part in names if part not in PARTS]:
        raise click.UsageError(f"no such part: {', '.join(unknown)}. There are: {', '.join(PARTS)}")
    sizes = sizes or ("real" if device.partition(":")[0] == "cuda" else "tiny")
    from gpu_parts.machine import device_words

    words = device_words(device)
    name = name or re.sub(r"\W+", "-", str(words["name"]).lower()).strip("-")
    for done in run_all(names, device, sizes, budget):
        figures = {"device": words, "sizes": sizes, "parts": [vars(part) for part in done]}
        file = write_results(f"gpu-{name}", figures, folder=out)
        head = f"# {words['name']}\n\n`{json.loads(file.read_text())['command']}`\n\n"
        facts = "\n".join(f"- {key}: {value}" for key, value in words.items())
        file.with_suffix(".md").write_text(f"{head}{facts}\n\n{markdown(done)}\n", encoding="utf-8")
        if done[-1].outcome != "running":
            click.echo(f"{done[-1].name}: {done[-1].seconds:.0f} s, {done[-1].outcome}")
    click.echo(file.with_suffix(".md"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--in-child"]:
        in_child(*sys.argv[2:])
    else:
        with tidy_termination():  # a part that runs is ended, too
            main()
