"""What is not laid out, or not any more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics.laid_out import IDS, load, logits, save
from torch import nn

from safe_dtype.models.block_layout import lay_out

pytestmark = pytest.mark.needs("pagemap")


BF16 = torch.bfloat16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a tied Qwen3 is saved."""
    return save("qwen3-tied", tmp_path_factory.mktemp("qwen3"))


def first(model: Any) -> nn.Linear:
    """Return one linear module."""
    return model.model.layers[0].mlp.up_proj


def test_weights_that_are_no_views_of_files_are_left_alone(folder: Path) -> None:
    """Of weights in memory there would be two copies."""
    model = load(folder).to(torch.float16)
    assert lay_out(model).modules == 0


def test_float32_weights_are_left_alone_unless_rounded(tmp_path: Path) -> None:
    """Float32 is laid out only on request, rounded, while activations stay in float32."""
    model = load(save("qwen3-tied", tmp_path, torch.float32))
    expected = logits(model)
    assert lay_out(model).modules == 0
    assert lay_out(model, rounded=BF16).modules == 15
    found = logits(model)
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < 0.02
    assert model.lm_head.weight.dtype == torch.float32
    assert torch.equal(model.model.embed_tokens(IDS), nn.functional.embedding(IDS, model.lm_head.weight))


def test_subclasses_and_replaced_forwards_are_left_alone(folder: Path) -> None:
    """A module that computes in a way of its own keeps it."""

    class Own(nn.Linear):
        pass

    model = load(folder)
    first(model).__class__ = Own
    model.lm_head.forward = lambda x: x
    assert lay_out(model).modules == 13
    assert type(first(model)) is Own


def test_inference_tensors_are_left_alone(folder: Path) -> None:
    """Parameters made in inference mode do not tell when they are written to."""
    with torch.inference_mode():
        model = load(folder)
        lay_out(model)
        logits(model)


def test_a_weight_changed_before_is_not_lost(folder: Path) -> None:
    """A weight that was written to in memory is left alone, and keeps what was written; others are laid out."""
    model = load(folder)
    first(model).weight.data.fill_(0.5)
    assert 0 < lay_out(model).modules < 15
    assert type(first(model)) is nn.Linear
    assert bool((first(model).weight == 0.5).all())


def test_memory_really_sinks(tmp_path: Path) -> None:
    """Laid out and read, a model lies in memory once, and its parameters are still there."""
    code = f"""
import os, psutil, torch
from safetensors.torch import load_file, save_file
from safe_dtype.models.block_layout import lay_out
file = {str(tmp_path / "weights.safetensors")!r}
save_file({{str(i): torch.full((4000, 5000), float(i + 1), dtype=torch.bfloat16) for i in range(4)}}, file)
model = torch.nn.ModuleList()
for weight in load_file(file).values():
    module = torch.nn.Linear(1, 1, bias=False)
    module.weight = torch.nn.Parameter(weight)
    model.append(module)
sums = [float(one.weight.double().sum()) for one in model]
memory = lambda: psutil.Process().memory_info().rss
before = memory()
done = lay_out(model)
grown = memory() - before
again = [float(one.weight.double().sum()) for one in model]
print(done.modules, done.given_back, grown, sums == again)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    modules, given_back, grown, same = run.stdout.split()
    assert (modules, same) == ("4", "True")
    assert int(given_back) > 0.99 * 160e6
    assert int(grown) < 30e6  # the blocks are 164 MB
