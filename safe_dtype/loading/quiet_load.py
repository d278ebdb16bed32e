"""Loads that are not the caller's own, as for a measurement: transformers shows no progress bar of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Have transformers show no "Loading weights" inside; afterwards as before."""
    shows_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shows_progress:
            logging.enable_progress_bar()
