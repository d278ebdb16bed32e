"""A trace of TorchScript, in `model.ts`. Deprecated, and blind to every branch that the traced batch did not take."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..graphs.flat import outputs_of
from ..nouns.form import BuildRequest, FileKind, Form, FormTarget, Run

_jit: Any = torch.jit  # its functions carry no types

logger = logging.getLogger(__name__)

FILE = "model.ts"
NAMES = "model.ts.json"  # a trace knows its tensors by position only


def build(request: BuildRequest) -> Run:
    """Trace, save, and return the trace. Shapes vary as far as the model's own code let them: a trace has no guards."""
    with torch.no_grad():
        outputs = list(outputs_of(request.model(**request.inputs)))
    names = list(request.inputs)
    with _deprecation_in_the_log(), torch.no_grad():
        model = _Positional(request.model, names).eval()
        traced = _jit.trace(model, tuple(request.inputs.values()), check_trace=False)
        _jit.save(traced, str(request.folder / FILE))
    (request.folder / NAMES).write_text(json.dumps({"inputs": names, "outputs": outputs}), encoding="utf-8")
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
    def run(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(outputs, traced(*(inputs[name] for name in names)), strict=True))

    return run


@contextmanager
def _deprecation_in_the_log() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for text in dict.fromkeys(str(one.message) for one in caught):  # each once, TracerWarnings too
        logger.warning("%s", text)


def _missing(target: FormTarget) -> str:
    version = tuple(int(number) for number in re.findall(r"\d+", target.environment["python"])[:2])
    return "a Python older than 3.14, where torch.jit is supported" if version >= (3, 14) else ""


FORM = Form(
    name="torchscript",
    rank=70,
    about="a trace: deprecated, and blind to branches; verified on other inputs",
    build=build,
    load=load,
    files=(FileKind(".ts", "a TorchScript program, which is unpickled", mark=r"code/.+\.py"),),
    missing_to_build=_missing,
    missing_to_load=_missing,
    only_asked=True,
)
