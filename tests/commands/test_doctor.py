"""`safe-dtype doctor`, run as users run it."""

from __future__ import annotations

import json

from command_run import Run

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
