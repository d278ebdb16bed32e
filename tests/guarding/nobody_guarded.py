"""A fixture for tests that look at the classes of torch and transformers themselves."""

from __future__ import annotations

import gc

import pytest

from safe_dtype import unguard
from safe_dtype.guarding.state import guards
from safe_dtype.models.needed import let_go


@pytest.fixture
def nobody_guarded() -> None:
    """Take the guard off every model that an earlier test has left, and undo what was put off while torch compiled."""
    gc.collect()
    for guard in list(guards()):
        if (model := guard.model()) is not None:
            unguard(model)
    gc.collect()
    let_go(object())
