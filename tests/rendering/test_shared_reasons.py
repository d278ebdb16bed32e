"""What all rows of a table give as their reason is said once."""

from __future__ import annotations

import pytest

from safe_dtype.rendering.shared_reasons import shared_parts, without_parts


@pytest.mark.parametrize(
    ("reasons", "shared"),
    [
        pytest.param(["slow; busy", "busy", "busy; exact"], ("busy",), id="one-part"),
        pytest.param(["slow; busy", "busy; slow"], ("slow", "busy"), id="all"),
        pytest.param(["slow", "busy"], (), id="none"),
        pytest.param(["busy", ""], (), id="a-row-without"),
        pytest.param(["busy"], (), id="one-row"),
        pytest.param([], (), id="no-row"),
    ],
)
def test_shared_parts(reasons: list[str], shared: tuple[str, ...]) -> None:
    """A part is shared where every row has it, and there are several."""
    assert shared_parts(reasons) == shared


def test_without_parts() -> None:
    """What is said once is left out of a row's own reason."""
    assert without_parts("slow; busy; exact", ("busy",)) == "slow; exact"
