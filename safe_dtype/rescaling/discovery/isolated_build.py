"""Build a foreign model without a trace in the process, and without one that is too large."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers.integrations import hub_kernels


class TooLargeError(Exception):
    """A model has more parameters than it may have."""


@contextlib.contextmanager
def at_most(parameters: int) -> Iterator[None]:
    """Stop a model that becomes too large while it is built, not after.

    Raises:
        TooLargeError: If more parameters than these are made, in this thread.
    """
    total = 0
    here = threading.get_ident()

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        nonlocal total
        if parameter is not None and threading.get_ident() == here:
            total += parameter.numel()
            if total > parameters:
                raise TooLargeError(f"it would have more than {parameters:,} parameters")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def unnoticed(seed: int) -> Iterator[None]:
    """Start from `seed`, and leave random states, warnings, logging and the kernels of the Hub as they were."""
    logger = logging.getLogger("transformers")
    level = logger.level
    python, numpy = random.getstate(), np.random.get_state()  # modelling code uses the global one
    # A kernel would be downloaded when a layer that could use it is built.
    enabled = getattr(hub_kernels, "_kernels_enabled", None)
    logger.setLevel(logging.CRITICAL)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            if enabled is not None:
                hub_kernels._kernels_enabled = False
            yield
    finally:
        if enabled is not None:
            hub_kernels._kernels_enabled = enabled
        logger.setLevel(level)
        random.setstate(python)
        np.random.set_state(numpy)
