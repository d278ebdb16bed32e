"""Weights that bitsandbytes rounds to 8 or 4 bits on loading, on a CPU: as plain transformers, stepped down, and found at fault.

bitsandbytes is no dependency of the tests: `nox -s "tool(bitsandbytes)"`.
"""

from __future__ import annotations

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

pytestmark = marks_of("bitsandbytes")
KINDS: dict[str, dict[str, Any]] = {
    "8-bit": {"load_in_8bit": True},
    "fp4": {"load_in_4bit": True},
    "nf4": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": torch.bfloat16,
        "bnb_4bit_use_double_quant": True,
    },
}


def _config(kind: str) -> Any:
    return transformers.BitsAndBytesConfig(**KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_as_plain(kind: str, folder: Path) -> None:
    """In every dtype it answers bit for bit as plain transformers."""
    assert_as_plain(folder, lambda: _config(kind), "bitsandbytes")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["cublas", "nan"])
@pytest.mark.parametrize("module", [NORM, DOWN])
def test_steps_down(kind: str, fault: str, module: str, folder: Path) -> None:
    """A fault in the very first step, in which bitsandbytes prepares its codes, leaves them as prepared."""
    assert_steps_down(folder, lambda: _config(kind), module, fault, tolerance=0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(kind: str, folder: Path, tmp_path: Path) -> None:
    """A model that was saved quantized is planned by its files, and answers as before."""
    model = load(folder, torch.bfloat16, _config(kind))
    model.save_pretrained(tmp_path / "quantized")
    again = load(tmp_path / "quantized", torch.bfloat16)
    plain = load(tmp_path / "quantized", torch.bfloat16, plain=True)
    assert torch.equal(again(PROMPT).logits, plain(PROMPT).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_in_a_scale(kind: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """NaN in a scale is found, and the log names the module."""
    model = load(folder, torch.bfloat16, _config(kind))
    weight = model.get_submodule(DOWN).weight
    state = getattr(weight, "quant_state", None)
    scales = weight.SCB if state is None else state.state2.absmax if state.nested else state.absmax
    scales.view(-1)[:1] = torch.nan
    assert_names_the_fault(model, caplog)
