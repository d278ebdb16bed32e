"""Tests plan for one recorded CPU, in this process and in those that they start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from recorded_cpu import recorded

from safe_dtype.devices import measure, routes_of
from safe_dtype.facts import BFLOAT16, COMPUTE, FLOAT16, FLOAT32, VerdictKind
from safe_dtype.loading import Request
from safe_dtype.loading.plan_request import checkpoint_for, device_for
from safe_dtype.planning import Plan, make_plan

OLDEST = {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"}


def planned(folder: Path) -> Plan:
    """Return the plan for a checkpoint on the CPU."""
    request = Request(str(folder), {})
    checkpoint = checkpoint_for(request)
    return make_plan(device_for(request, checkpoint), checkpoint)


def test_every_dtype_is_fast(tiny_qwen3: Path) -> None:
    """A checkpoint is planned by the recorded figures: on no CPU is there a warning of a slow dtype."""
    request = Request(str(tiny_qwen3), {})
    device = device_for(request, checkpoint_for(request))
    assert [device.verdict(dtype).kind for dtype in COMPUTE] == [VerdictKind.NATIVE] * 3
    rates = [device.verdict(dtype).prefill_flops_per_s for dtype in (FLOAT32, BFLOAT16, FLOAT16)]
    assert rates == [150e9, 1500e9, 1400e9]


def test_the_user_keeps_what_was_measured(tmp_path: Path) -> None:
    """The figures are never written to the user's own cache, whichever test is the first."""
    first = f"{__file__}::{test_every_dtype_is_fast.__name__}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", first]
    own = {
        name: value for name, value in os.environ.items() if name not in ("SAFE_DTYPE_CACHE", "PYTEST_XDIST_WORKER")
    }
    user = {"XDG_CACHE_HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=own | user)
    assert done.returncode == 0, done.stdout
    assert not list(tmp_path.rglob("safe_dtype"))


@pytest.mark.slow
def test_children_too(tiny_qwen3: Path) -> None:
    """A process that a test starts prints the plan that this one makes."""
    command = [sys.executable, "-m", "safe_dtype", "plan", str(tiny_qwen3), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = [one["cost"]["prefill_seconds"] for one in json.loads(done.stdout)["decisions"]]
    assert seconds == [one.cost.prefill_seconds for one in planned(tiny_qwen3).decisions if one.cost]


@pytest.mark.slow
@pytest.mark.needs("x86")
def test_other_kernels_are_measured(tiny_qwen3: Path) -> None:
    """A process with other kernels finds nothing recorded, and measures: here what the oldest x86 CPU would have."""
    command = [sys.executable, "-m", "safe_dtype", "doctor", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | OLDEST)
    assert '"kind": "slow"' in done.stdout


def test_answers_as_measured() -> None:
    """The recorded figures answer the same cells as a measurement, in their order of widths and rows."""
    question = {"dtypes": (FLOAT32, BFLOAT16), "widths": ((64, 64),), "ops": ("matmul", "softmax")}
    routes = routes_of(FLOAT32, "cpu")
    here = measure("cpu", **question, routes=routes, cell_seconds=0.02)
    cells = {(verdict.dtype, verdict.op) for verdict in recorded("cpu", **question, routes=routes)}
    assert cells == {(verdict.dtype, verdict.op) for verdict in here}
    assert (FLOAT32, "matmul_narrow") in cells
