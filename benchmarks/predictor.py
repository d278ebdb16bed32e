"""Is the plan right? Every accepted candidate of a plan is loaded and timed beside what was predicted for it.

    python benchmarks/predictor.py             # 3 shapes x 3 checkpoints x 3 CPU settings, about 40 minutes

Random models of Qwen3's shapes. In each cell the candidate that the plan chooses should be the fastest for the
workload (512 tokens in, 128 out), or within a tenth of it. Each candidate runs in a process of its own.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from generation import CPUS, SHAPES, in_child, make_checkpoint, timed
from results_file import write_results

PROMPT, NEW = 512, 8
WITHIN = 1.10


def candidates(folder: str) -> dict[str, Any]:
    """Return what the plan for `folder` chooses, and the predicted costs of every accepted candidate."""
    plan = _plan(folder)
    new = plan.policy.workload.new_tokens
    return {
        "chosen": str(plan.chosen.candidate),
        "candidates": [
            {
                "candidate": str(one.candidate),
                "layout": one.routes.layout,
                "predicted_prefill_seconds": one.cost.prefill_seconds,
                "predicted_seconds_per_token": one.cost.decode_seconds / new,
                "predicted_bytes": one.cost.bytes,
            }
            for one in plan.decisions
            if one.accepted
        ],
    }


def run(folder: str, candidate: str) -> dict[str, Any]:
    """Load `folder` as the plan's `candidate` would be loaded, and time it."""
    import transformers

    from safe_dtype import SafeAutoModel, report

    transformers.utils.logging.disable_progress_bar()
    plan = _plan(folder)
    decision = next(one for one in plan.decisions if str(one.candidate) == candidate)
    storage, compute = decision.candidate.storage, decision.candidate.compute
    forced = replace(plan, storage=storage, compute=compute, routes=decision.routes, attention=decision.attention)
    started = time.perf_counter()
    model = SafeAutoModel.from_pretrained(folder, plan=forced).eval()
    seconds = time.perf_counter() - started
    found = {"load_seconds": seconds, **timed(model, PROMPT, NEW, 1)}
    if report(model).events:
        raise RuntimeError(f"{candidate} did not run through: {report(model)}")
    return found


def _plan(folder: str) -> Any:
    from safe_dtype.loading import Request, plan_request

    return plan_request(Request(folder, {}), drifts="measured")


def cell(shape: str, saved: str, cpu: str, folder: str) -> dict[str, Any]:
    """Plan and time one cell."""
    planned = in_child(__file__, cpu, folder)
    rows = [{**one, **in_child(__file__, cpu, folder, one["candidate"])} for one in planned["candidates"]]
    for row in rows:
        row["seconds"] = row["prefill_seconds"] + 128 * row["seconds_per_token"]
    fastest = min(row["seconds"] for row in rows)
    chosen = next(row["seconds"] for row in rows if row["candidate"] == planned["chosen"])
    found = {"shape": shape, "saved": saved, "cpu": cpu, "chosen": planned["chosen"], "over_fastest": chosen / fastest}
    click.echo(json.dumps(found), err=True)
    for row in rows:
        click.echo(
            f"    {row['candidate']:34} {row['layout']:6} prefill {row['predicted_prefill_seconds']:6.2f} -> "
            f"{row['prefill_seconds']:6.2f} s, token {row['predicted_seconds_per_token'] * 1e3:6.1f} -> "
            f"{row['seconds_per_token'] * 1e3:6.1f} ms, peak {row['peak_bytes'] / 1e9:.2f} GB", err=True,
        )  # fmt: skip
    return {**found, "candidates": rows}


@click.command()
@click.option("--shape", "shapes", multiple=True, type=click.Choice(list(SHAPES)), default=list(SHAPES))
@click.option("--saved", multiple=True, default=["bfloat16", "float16", "float32"], show_default=True)
@click.option("--cpu", "cpus", multiple=True, type=click.Choice(list(CPUS)), default=list(CPUS), show_default=True)
@click.option("--name", default="predictor", show_default=True, help="Of the result file.")
def main(*, shapes: tuple[str, ...], saved: tuple[str, ...], cpus: tuple[str, ...], name: str) -> None:
    """Time every accepted candidate of every cell, and write the table."""
    cells = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["SAFE_DTYPE_CACHE"] = cache
        for shape, dtype in itertools.product(shapes, saved):
            with tempfile.TemporaryDirectory() as folder:
                make_checkpoint(Path(folder), dtype, shape=shape)
                cells += [cell(shape, dtype, cpu, folder) for cpu in cpus]
                write_results(name, {"prompt_tokens": PROMPT, "new_tokens": NEW, "cells": cells})
    good = sum(one["over_fastest"] <= WITHIN for one in cells)
    click.echo(f"{good} of {len(cells)} plans are the fastest candidate or within {WITHIN - 1:.0%} of it")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.stdout.write(json.dumps((run if len(sys.argv) > 3 else candidates)(*sys.argv[2:])) + "\n")
    else:
        main()
