"""What is asked of every quantizer: as plain transformers, a step down that keeps the numbers, a fault that is named."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from safe_dtype import SafeAutoModelForCausalLM, plan_of, report
from safe_dtype.errors import NoDtypeLeft
from safe_dtype.facts import BFLOAT16, FLOAT32
from safe_dtype.testing import fault

PROMPT = torch.arange(2, 20)[None]
DOWN, NORM = "model.layers.1.mlp.down_proj", "model.layers.1.input_layernorm"


def tiny_qwen3(folder: Path) -> Path:
    """Save a Qwen3 whose widths every quantizer takes, in bfloat16; return the folder."""
    torch.manual_seed(0)
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config = transformers.Qwen3Config(vocab_size=128, hidden_size=64, intermediate_size=128, **heads)
    transformers.Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def marks_of(quantizer: str) -> list[pytest.MarkDecorator]:
    """Return the marks of a file of tests against a quantizer, which has a lane of its own: `nox -s "tool(<its name>)"`."""
    its_own_warnings = pytest.mark.filterwarnings("default")
    return [pytest.mark.needs(quantizer), its_own_warnings, pytest.mark.slow]


def load(folder: Path, dtype: torch.dtype, config: Any = None, *, plain: bool = False) -> Any:
    """Load it in `dtype`, quantized by `config` where there is one: by safe_dtype, or as transformers does."""
    classes = transformers.AutoModelForCausalLM if plain else SafeAutoModelForCausalLM
    arguments = {} if config is None else {"quantization_config": config}
    return classes.from_pretrained(folder, dtype=dtype, **arguments).eval()


def assert_as_plain(folder: Path, config: Callable[[], Any], method: str) -> None:
    """In every dtype it is planned for its quantizer, and answers bit for bit as plain transformers."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        model, plain = load(folder, dtype, config()), load(folder, dtype, config(), plain=True)
        assert plan_of(model).quantization == method
        assert torch.equal(model(PROMPT).logits, plain(PROMPT).logits)
        few = {"max_new_tokens": 4, "do_sample": False}
        assert torch.equal(model.generate(PROMPT, **few), plain.generate(PROMPT, **few))


@torch.no_grad()
def assert_steps_down(folder: Path, config: Callable[[], Any], module: str, kind: str, *, tolerance: float) -> None:
    """A fault of bfloat16 leads to float32, whose logits are those of plain transformers loaded in it.

    Args:
        folder: The model.
        config: Makes the quantization_config, None for a model that comes quantized.
        module: Where the fault is.
        kind: An exception or a value, as `safe_dtype.testing.fault` knows it.
        tolerance: Relative, of the norm; scales that were rounded to bfloat16 on loading stay so.
    """
    model = load(folder, torch.bfloat16, config())
    plain = load(folder, torch.float32, config(), plain=True)(PROMPT).logits
    with fault(model, module, kind, dtype=BFLOAT16) as put:
        logits = model(PROMPT).logits
    assert put.fired
    assert [(event.before, event.after) for event in report(model).events] == [(BFLOAT16, FLOAT32)]
    assert logits.dtype is torch.float32
    assert distance(logits, plain) <= tolerance
    assert distance(model(PROMPT).logits, plain) <= tolerance  # and the next step is of the same model
    assert torch.isfinite(
        model.generate(PROMPT, max_new_tokens=3, return_dict_in_generate=True, output_scores=True).scores[-1]
    ).all()


def assert_names_the_fault(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    """NaN that no dtype mends ends in an error, or comes out as in plain transformers; the module that makes it is named.

    Weights that hold NaN themselves are an error, as those of any model; scales of codes that nobody looks into are not.
    """
    with caplog.at_level(logging.INFO, "safe_dtype"):
        try:
            outcome = model(PROMPT).logits
        except NoDtypeLeft as exc:
            outcome = exc
    assert isinstance(outcome, NoDtypeLeft) or not torch.isfinite(outcome).all()
    assert DOWN in (str(outcome) if isinstance(outcome, NoDtypeLeft) else caplog.text)


def distance(tensor: Tensor, reference: Tensor) -> float:
    """Return the relative distance of two tensors, in the norm of all their numbers."""
    return float((tensor.float() - reference.float()).norm() / reference.float().norm())
