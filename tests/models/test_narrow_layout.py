"""A float32 model multiplies by weights in 16 bit, with the results and the bytes that were planned."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics.laid_out import IDS, MARKS, cast_up, load, logits, near
from torch import nn

from safe_dtype.checkpoints import read_checkpoint
from safe_dtype.facts import BFLOAT16, FLOAT32
from safe_dtype.models.block_layout import lay_out_narrow, narrow_of
from safe_dtype.models.forwards.gated_forward import CompiledGate, compile_gates
from safe_dtype.models.forwards.module_forward import value_of
from safe_dtype.models.recast import growth
from safe_dtype.planning.predict import saved_by_codes, weight_bytes

pytestmark = MARKS

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a tied Qwen3 is saved."""
    return cast_up("qwen3-tied", tmp_path_factory.mktemp("qwen3"))


@pytest.fixture
def model(folder: Path) -> Any:
    """The same one, in 16 bit."""
    model = load(folder)
    assert lay_out_narrow(model, BF16).modules == 15
    return model


def narrowed(model: nn.Module) -> int:
    """Return how many modules multiply by weights in 16 bit."""
    return sum(narrow_of(one) is not None for one in model.modules())


def up_proj(model: Any) -> nn.Linear:
    """Return one linear module."""
    return model.model.layers[0].mlp.up_proj


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("name", ["qwen3-tied", "qwen3-untied", "opt", "gpt2"])
def test_results(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Logits of few rows and of many are those of float32, within the rounding of its sums; activations stay in it."""
    folder = cast_up(name, tmp_path, dtype)
    model, plain = load(folder), load(folder)
    done = lay_out_narrow(model, dtype)
    assert narrowed(model) == done.modules > 0
    assert done.given_back > 1.9 * done.bytes
    for rows in (1, 9, 20):
        assert logits(model, rows).dtype == FP32
        assert near(logits(model, rows), logits(plain, rows), 1e-5)


def test_tokens(model: Any, plain: Any) -> None:
    """Greedy tokens are those of float32."""
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones(1, 6)}
    assert torch.equal(model.generate(IDS[:, :6], **options), plain.generate(IDS[:, :6], **options))


def test_predicted_bytes(model: Any, folder: Path) -> None:
    """What a plan predicts of the weights is what their storages take."""
    held = {id(one.weight): narrow_of(one) for one in model.modules() if narrow_of(one)}
    taken = sum(held[id(one)].nbytes if id(one) in held else one.nbytes for one in model.parameters())
    facts = read_checkpoint(folder)
    assert facts.narrower == BFLOAT16
    assert weight_bytes(FLOAT32, facts) - saved_by_codes(FLOAT32, BFLOAT16, facts) == taken


def test_other_numbers(folder: Path, tmp_path: Path) -> None:
    """A weight with one number that no 16 bit hold stays as it is, and the others are held so."""
    finer = load(folder)
    up_proj(finer).weight.data[639, 511] = 1 + 2**-20
    finer.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert lay_out_narrow(model, BF16).modules == 14
    assert narrow_of(up_proj(model)) is None


def test_rounded(folder: Path, plain: Any) -> None:
    """Where it is asked for weights are rounded, and lookups keep their bits."""
    model = load(folder)
    wanted = copy.deepcopy(plain)
    for one in wanted.modules():
        if isinstance(one, nn.Linear):
            one.weight = nn.Parameter(one.weight.half().float())
    assert lay_out_narrow(model, FP16, rounds=True).modules == 15
    assert near(logits(model), logits(wanted), 1e-5)
    assert torch.equal(model.model.embed_tokens(IDS), plain.model.embed_tokens(IDS))


def test_gates(model: Any, plain: Any) -> None:
    """Both products of a gated MLP are computed in one pass over what is held of them."""
    assert compile_gates(model) == 2
    mlp = model.model.layers[0].mlp
    assert isinstance(value_of(mlp), CompiledGate)
    x = torch.randn(3, 512)
    with torch.no_grad():
        assert near(mlp(x), plain.model.layers[0].mlp(x), 1e-5)


def test_room_for_a_step_down(model: Any) -> None:
    """What a change of dtype needs counts the weights whole, for of them only 16 bit are in memory."""
    (more,) = growth(model, {FP32}, BF16).values()
    assert more > 0
