"""A load that is not the caller's own shows no progress bar."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.utils import logging

from safe_dtype.facts import FLOAT32
from safe_dtype.loading.quiet_load import no_progress_bar
from safe_dtype.loading.trials.second_copy import load_apart
from safe_dtype.verifying import Checkpoint

TINY = str(Path(__file__).resolve().parents[2] / "examples" / "tiny-qwen3")


@pytest.mark.parametrize("is_shown", [True, False])
def test_the_bar_comes_back(is_shown: bool) -> None:
    """Whether transformers shows progress is afterwards as it was before."""
    before = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if is_shown else logging.disable_progress_bar)()
    try:
        with no_progress_bar():
            assert not logging.is_progress_bar_enabled()
        assert logging.is_progress_bar_enabled() is is_shown
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()


def test_a_trial_shows_none(capfd: pytest.CaptureFixture[str]) -> None:
    """The second copy of a model, which is loaded to be measured, is loaded without "Loading weights"."""
    assert load_apart(Checkpoint(TINY, "cpu"), FLOAT32).dtype == torch.float32
    assert "Loading weights" not in capfd.readouterr().err
