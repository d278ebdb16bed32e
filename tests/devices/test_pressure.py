"""What the kernel says of processes that wait for a core."""

from __future__ import annotations

from pathlib import Path

import pytest

from safe_dtype.devices import pressure
from safe_dtype.devices.pressure import are_cores_free


@pytest.mark.parametrize(
    ("text", "free"),
    [
        pytest.param("some avg10=0.00 avg60=80.53 avg300=61.28 total=49745386513\n", True, id="quiet-again"),
        pytest.param("some avg10=84.24 avg60=80.53 avg300=61.28 total=49745386513\n", False, id="busy"),
        pytest.param("some avg10=5.00 avg60=0.00 avg300=0.00 total=1\n", False, id="busy-since-a-second"),
        pytest.param("", False, id="nothing-said"),
        pytest.param(None, False, id="no-such-file"),
    ],
)
def test_cores(text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, free: bool) -> None:
    """The last ten seconds count; a system that does not tell has no free cores."""
    file = tmp_path / "cpu"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(pressure, "_CPU", file)
    assert are_cores_free() is free
