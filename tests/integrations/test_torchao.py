"""Weights that torchao rounds to 8 bits on loading, on a CPU: as plain transformers, and stepped down with their codes.

torchao is no dependency of the tests, since transformers imports it wherever it is: `nox -s "tool(torchao)"`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from quantized_models import (
    DOWN,
    NORM,
    PROMPT,
    assert_as_plain,
    assert_names_the_fault,
    assert_steps_down,
    load,
    marks_of,
)

from safe_dtype.models.recast import recast
from safe_dtype.models.undo_log import UndoLog

# None where torchao is absent: there all tests of this file are skipped, or fail by `--must-have`.
ao = import_module("torchao.quantization") if find_spec("torchao") else None

pytestmark = marks_of("torchao")
KINDS = {
    "weight-only": ("Int8WeightOnlyConfig", 0.01),
    "dynamic": ("Int8DynamicActivationInt8WeightConfig", 0.02),
    "float8": ("Float8WeightOnlyConfig", 0.02),
}


def _config(kind: str) -> Any:
    return transformers.TorchAoConfig(getattr(ao, KINDS[kind][0])())


@pytest.mark.parametrize("kind", KINDS)
def test_as_plain(kind: str, folder: Path) -> None:
    """In every dtype it answers bit for bit as plain transformers."""
    assert_as_plain(folder, lambda: _config(kind), "torchao")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["cublas", "nan"])
@pytest.mark.parametrize("module", [NORM, DOWN])
def test_steps_down(kind: str, fault: str, module: str, folder: Path) -> None:
    """A fault beside the codes, or in a product by them, leads to float32 with the same codes."""
    assert_steps_down(folder, lambda: _config(kind), module, fault, tolerance=KINDS[kind][1])


@pytest.mark.parametrize("kind", KINDS)
def test_codes_follow(kind: str, folder: Path) -> None:
    """Tensors of codes show the dtype that the model has now, and have the same codes; the way back leads to the former ones."""
    model = load(folder, torch.bfloat16, _config(kind))
    codes, log = model.get_submodule(DOWN).weight.qdata, UndoLog()
    before = model(PROMPT).logits
    recast(model, {torch.bfloat16}, torch.float32, log=log)
    weight = model.get_submodule(DOWN).weight
    assert weight.dtype is torch.float32
    assert torch.equal(weight.qdata.view(torch.uint8), codes.view(torch.uint8))
    assert model(PROMPT).logits.dtype is torch.float32
    log.undo()
    assert torch.equal(model(PROMPT).logits, before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_in_a_scale(kind: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """NaN in a scale is found, and the log names the module."""
    model = load(folder, torch.bfloat16, _config(kind))
    model.get_submodule(DOWN).weight.scale.view(-1)[3] = torch.nan
    assert_names_the_fault(model, caplog)
