"""Tests on the rehearsal device: in this process with `--device rehearsal`, else in two other processes.

A backend cannot be taken out of a process again, and all other tests are to run without one.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from accelerator.building import UnbuildableError, library
from recorded_cpu import figures, recorded

from safe_dtype.devices import DEFAULT_OPS, DEFAULT_WIDTHS, measure
from safe_dtype.facts import COMPUTE, Dtype, Verdict, dtype_named

if TYPE_CHECKING:
    from accelerator.rehearsal import Rehearsal

ROOT = Path(__file__).resolve().parent.parent.parent
HALF = ("test_deferred_watch.py", "test_late_loops.py", "test_rescue.py")  # take about as long as all others


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let autograd know both devices, and keep what is imported by now out of the collections after each test."""
    if session.config.getoption("--device") == "rehearsal":
        torch.ones(1, requires_grad=True).backward()  # the first starts a thread for each device that there is then
        gc.collect()
        gc.freeze()


@pytest.fixture
def rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rehearsal]:
    """Two devices of 16 GiB that count from zero and refuse nothing yet; plans take them for as fast as the recorded CPU."""
    from accelerator.rehearsal import Rehearsal  # it needs the device

    def measure_device(
        device: str,
        dtypes: Sequence[Dtype] = COMPUTE,
        widths: Sequence[tuple[int, int]] = DEFAULT_WIDTHS,
        *,
        ops: Sequence[str] = DEFAULT_OPS,
        routes: Sequence[tuple[Dtype, str]] = (),
    ) -> tuple[Verdict, ...]:
        if rehearsal.is_measured:
            return measure(device, dtypes, widths, ops=ops, routes=routes)
        rates = rehearsal.card(torch.device(device).index).rates if device != "cpu" else None
        if rates is None:
            return recorded("cpu", dtypes, widths, ops=ops, routes=routes)
        return figures(dtypes, widths, ops, routes, {dtype_named(name): each for name, each in rates.items()})

    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "verdicts"))
    monkeypatch.setattr("safe_dtype.devices.survey.measure", measure_device)
    monkeypatch.setattr("safe_dtype.devices.inventory.accelerators", lambda: rehearsal.hardware())
    rehearsal = Rehearsal()
    rehearsal.reset()
    yield rehearsal
    rehearsal.reset()


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Without the device, take each file as one test that runs it elsewhere."""
    if parent.config.getoption("--device") == "rehearsal":
        return None
    return _FileForAChild.from_parent(parent, path=module_path)


@pytest.hookimpl(trylast=True)  # of what is selected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let two children run all files, for as many workers: starting one takes seconds."""
    children: dict[tuple[str, bool], _OnTheDevice] = {}
    for item in [item for item in items if isinstance(item, _OnTheDevice)]:
        child = children.setdefault((item.selection, item.path.name in HALF), item)
        if child is not item:
            child.files.append(item.path)
            items.remove(item)


class _FileForAChild(pytest.File):
    def collect(self) -> Iterable[pytest.Item]:
        yield _OnTheDevice.from_parent(self, name="and_others_on_the_rehearsal_device", selection="not slow")
        slow = _OnTheDevice.from_parent(self, name="and_others_on_the_rehearsal_device_slow", selection="slow")
        slow.add_marker("slow")
        yield slow


class _ChildFailedError(Exception):
    """Tests of some files have failed; the message is what pytest wrote."""


class _OnTheDevice(pytest.Item):
    def __init__(self, *, selection: str, **options: Any) -> None:
        super().__init__(**options)
        self.selection = selection
        self.files = [self.path]

    def runtest(self) -> None:
        must_have = self.config.getoption("--must-have")
        try:
            library()
        except UnbuildableError as error:
            (pytest.fail if "rehearsal" in must_have.split(",") else pytest.skip)(str(error))
        command = [sys.executable, "-m", "pytest", "--device", "rehearsal", "--must-have", must_have, "--color=no"]
        command += ["-q", "-p", "no:cacheprovider", "-m", self.selection, *map(str, self.files)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        child = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if child.returncode and not (
            self.selection == "slow" and child.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
        ):
            raise _ChildFailedError(f"{' '.join(command)}\n{child.stdout}{child.stderr}")
        skipped = [line for line in child.stdout.splitlines() if line.startswith("SKIPPED")]
        self.user_properties += [("skipped in a child", line) for line in skipped]

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException]) -> str:  # type: ignore[override]
        is_ours = isinstance(excinfo.value, _ChildFailedError)
        return str(excinfo.value) if is_ours else str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{', '.join(file.stem for file in self.files)} on the rehearsal device"
