"""The machine itself is measured here, and no recorded one."""

from __future__ import annotations

import pytest

from safe_dtype.devices import measure


@pytest.fixture(autouse=True)
def _this_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safe_dtype.devices.survey.measure", measure)
