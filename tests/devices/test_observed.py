"""What ended a process is remembered for its device and dtype, until it is forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

from safe_dtype.devices import detect_one, remember_failure
from safe_dtype.devices.observed import forget_failures, with_failures
from safe_dtype.errors import NoSuchDeviceError
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, Verdict, VerdictKind

MEASURED = tuple(Verdict(dtype, "matmul", VerdictKind.NATIVE, "measured") for dtype in (FLOAT32, BFLOAT16, FLOAT16))
OTHER_OP = Verdict(BFLOAT16, "conv2d", VerdictKind.NATIVE, "measured")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path))


def test_nothing_remembered() -> None:
    """Then the verdicts are as they were measured."""
    assert with_failures(detect_one("cpu"), MEASURED) == MEASURED


def test_remembered() -> None:
    """The failure stands in the place of its dtype's product; every other verdict stays, in order."""
    remember_failure("cpu", BFLOAT16, "it ended")
    crashed = Verdict(BFLOAT16, "matmul", VerdictKind.CRASHES, "it ended")
    found = with_failures(detect_one("cpu"), (*MEASURED, OTHER_OP))
    assert found == (MEASURED[0], crashed, MEASURED[2], OTHER_OP)


def test_two_and_again() -> None:
    """Each dtype has its own; of the same one the last counts."""
    for dtype, reason in ((BFLOAT16, "first"), (FLOAT16, "second"), (BFLOAT16, "third")):
        remember_failure("cpu", dtype, reason)
    reasons = [one.reason for one in with_failures(detect_one("cpu"), MEASURED)]
    assert reasons == ["measured", "third", "second"]


def test_forgotten() -> None:
    """Forgotten, nothing is left of it."""
    remember_failure("cpu", BFLOAT16, "it ended")
    forget_failures(detect_one("cpu"))
    assert with_failures(detect_one("cpu"), MEASURED) == MEASURED


def test_no_such_device() -> None:
    """Of a device that is not here nothing can be remembered."""
    with pytest.raises(NoSuchDeviceError):
        remember_failure("cuda:99", BFLOAT16, "it ended")
