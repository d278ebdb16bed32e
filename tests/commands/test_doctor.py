"""`safe-dtype doctor`, run as users run it."""

from __future__ import annotations

import json
from dataclasses import replace

import factories as f
from command_run import Run

from safe_dtype.commands.doctor import device_text
from safe_dtype.facts import Timing

KEYS = {
    "device", "name", "memory", "verdicts", "vendor", "capability", "driver", "versions", "settings", "claims", "family",
    "prior_order", "measured",
}  # fmt: skip


def test_doctor(run: Run) -> None:
    """`doctor` shows each device, a verdict on each dtype, and torch's own claims."""
    done = run("doctor")
    assert done.returncode == 0, done.stderr
    for word in ("cpu:", "float32", "bfloat16", "float16", "matmul", "says"):
        assert word in done.stdout


def test_doctor_json(run: Run) -> None:
    """`doctor --format json` is one JSON document with a schema version and nothing beside it."""
    done = run("doctor", "--device", "cpu", "--refresh", "--format", "json")
    (device,) = json.loads(done.stdout)["devices"]
    assert device["device"] == "cpu"
    assert set(device) == KEYS
    assert {one["dtype"] for one in device["verdicts"]} == {"float32", "bfloat16", "float16"}


def test_what_holds_for_all_rows_is_said_once() -> None:
    """A note on every verdict that was timed stands below the table, and in no row."""
    facts = f.TURING
    timed = [
        replace(
            verdict, reason="; ".join(filter(None, (verdict.reason, "busy cores"))), timings=(Timing(1, (0, 0), 1.0),)
        )
        for verdict in facts.verdicts
    ]
    text = device_text(replace(facts, verdicts=tuple(timed)), width=100)
    assert text.lower().count("busy cores") == 1
    assert "Busy cores, in every row." in text
