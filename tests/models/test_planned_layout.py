"""A loaded model comes into the layout that was planned for it, and into no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from numerics.laid_out import load, save
from torch import nn

from safe_dtype import guard, unguard
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, Dtype
from safe_dtype.models.block_layout import blocks_of, lay_out
from safe_dtype.models.forwards.compiled_products import products_of
from safe_dtype.models.planned_layout import compile_as_planned, lay_out_as_planned
from safe_dtype.planning import Candidate, Routes

SECONDS = (1e-9, 1e-9, 1e-9)
IDS = torch.arange(3, 23)[None]  # enough rows for the wide product


def linears(model: nn.Module) -> list[nn.Linear]:
    """Return the linear modules."""
    return [one for one in model.modules() if isinstance(one, nn.Linear)]


@pytest.mark.parametrize(
    "routes",
    [
        pytest.param(None, id="nothing-measured"),
        pytest.param(Routes("plain", None, SECONDS), id="plain"),
        pytest.param(Routes("plain", None, SECONDS, FLOAT32), id="plain-though-something-is-wide"),
        pytest.param(Routes("blocks", None, SECONDS), id="blocks-without-a-wide-dtype"),
    ],
)
def test_not_planned(routes: Routes | None) -> None:
    """Where no blocks are planned nothing is touched, whatever the model."""
    module = nn.Linear(512, 512, dtype=torch.bfloat16)
    weight = module.weight
    assert lay_out_as_planned(module, Candidate(BFLOAT16, BFLOAT16), routes) is None
    assert module.weight is weight
    assert blocks_of(module) is None


@pytest.mark.needs("pagemap")
def test_planned(tmp_path: Path) -> None:
    """Where they are, every linear module is laid out, and many rows are multiplied in the dtype that was planned."""
    folder = save("qwen3-tied", tmp_path)
    found = {}
    for wide in (FLOAT32, BFLOAT16):
        model = load(folder)
        done = lay_out_as_planned(model, Candidate(BFLOAT16, wide), Routes("blocks", None, SECONDS, wide))
        assert done == len(linears(model)) == 15
        assert {blocks.tensor.dtype for one in linears(model) if (blocks := blocks_of(one))} == {torch.bfloat16}
        wanted = load(folder)
        lay_out(wanted, wide=getattr(torch, wide.name))
        with torch.no_grad():
            found[wide] = model(input_ids=IDS).logits
            assert torch.equal(found[wide], wanted(input_ids=IDS).logits)
    assert not torch.equal(found[FLOAT32], found[BFLOAT16])


@pytest.mark.needs("pagemap")
@pytest.mark.parametrize("compute", [BFLOAT16, FLOAT16], ids=str)
def test_rounded(tmp_path: Path, compute: Dtype) -> None:
    """Weights that stay in float32 are rounded to what is computed in, in the blocks alone."""
    model = load(save("qwen3-tied", tmp_path, torch.float32))
    assert lay_out_as_planned(model, Candidate(FLOAT32, compute), Routes("blocks", None, SECONDS, FLOAT32)) == 15
    blocked = [blocks_of(one) for one in linears(model)]
    assert {one.tensor.dtype for one in blocked if one} == {getattr(torch, compute.name)}
    assert {one.weight.dtype for one in linears(model)} == {torch.float32}


def test_weights_in_memory() -> None:
    """Weights that are no view of a file are left where they are: blocks would take their room once more."""
    module = nn.Linear(512, 512, dtype=torch.bfloat16)
    planned = Routes("blocks", None, SECONDS, FLOAT32)
    assert lay_out_as_planned(module, Candidate(BFLOAT16, BFLOAT16), planned) == 0


def test_compiled_as_planned() -> None:
    """Products of as many rows as planned are compiled, in the dtype that weights are stored in; else nothing is touched."""
    pytest.importorskip("llvmlite", reason="products are compiled by llvmlite, of the extra `fast`")
    module, candidate = nn.Linear(512, 512, dtype=torch.bfloat16), Candidate(BFLOAT16, FLOAT32)
    for routes in (None, Routes("plain", 9, SECONDS), Routes("blocks", None, SECONDS, FLOAT32)):
        assert compile_as_planned(module, candidate, routes) == 0
        assert products_of(module) is None
    planned = Routes("plain", 9, SECONDS, compiled_rows=8)
    assert compile_as_planned(module, Candidate(FLOAT32, FLOAT32), planned) == 0
    assert compile_as_planned(module, candidate, planned) == 1
    products = products_of(module)
    assert products is not None
    assert (products.dtype, products.most_rows) == (torch.bfloat16, 8)


def test_unguarded_without_a_trace(tmp_path: Path) -> None:
    """A model whose guard is taken off computes by the forwards of its classes."""
    pytest.importorskip("llvmlite", reason="compiled by llvmlite, of the extra `fast`")
    model = load(save("qwen3-tied", tmp_path))
    with torch.no_grad():
        before = model(input_ids=IDS).logits
    routes = Routes("plain", None, SECONDS, compiled_rows=8)
    assert compile_as_planned(model, Candidate(BFLOAT16, BFLOAT16), routes) > 0
    assert any("forward" in module.__dict__ for module in model.modules())
    guard(model)
    unguard(model)
    assert not any("forward" in module.__dict__ for module in model.modules())
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, before)
