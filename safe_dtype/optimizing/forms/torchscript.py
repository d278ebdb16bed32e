"""A trace of TorchScript, in `model.ts`. Deprecated, and blind to every branch that the traced batch did not take."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ...facts import Dtype
from ..nouns.job import Dynamic
from .flat import outputs_of
from .maker import Run

_jit: Any = torch.jit  # its functions carry no types

logger = logging.getLogger(__name__)

FILE = "model.ts"
NAMES = "model.ts.json"  # a trace knows its tensors by position only


def available(dtype: Dtype, device: str) -> str:  # noqa: ARG001
    """Torch ends TorchScript with Python 3.14."""
    return "torch does not support TorchScript on Python 3.14 and later" if sys.version_info >= (3, 14) else ""


def build(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], folder: Path, *, dynamic: Dynamic) -> Run:  # noqa: ARG001
    """Trace, save, and return the trace. Shapes vary as far as the model's own code let them: a trace has no guards."""
    with torch.no_grad():
        outputs = list(outputs_of(model(**inputs)))
    names = list(inputs)
    with _deprecation_in_the_log(), torch.no_grad():
        traced = _jit.trace(_Positional(model, names).eval(), tuple(inputs.values()), check_trace=False)
        _jit.save(traced, str(folder / FILE))
    (folder / NAMES).write_text(json.dumps({"inputs": names, "outputs": outputs}), encoding="utf-8")
    return _runs(traced, names, outputs)


def load(folder: Path) -> Run:
    """Load the trace. Trust the folder first: torch.jit.load unpickles."""
    names = json.loads((folder / NAMES).read_text(encoding="utf-8"))
    with _deprecation_in_the_log():
        traced = _jit.load(str(folder / FILE))
    return _runs(traced, names["inputs"], names["outputs"])


class _Positional(torch.nn.Module):
    """Takes and returns tensors by position: a trace returns no dicts, and ModelOutput is one."""

    def __init__(self, model: torch.nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self._names = model, names

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(outputs_of(self.model(**dict(zip(self._names, tensors, strict=True)))).values())


def _runs(traced: Any, names: list[str], outputs: list[str]) -> Run:
    def run(**given: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(outputs, traced(*(given[name] for name in names)), strict=True))

    return run


@contextmanager
def _deprecation_in_the_log() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for text in dict.fromkeys(str(one.message) for one in caught):  # each once, TracerWarnings too
        logger.warning("%s", text)
