"""A model whose linear weights are held as codes, or in 16 bit, is in all else that of its files."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from numerics.laid_out import IDS, MARKS, cast_up, load, logits, save
from torch import nn

from safe_dtype.facts import INT4, INT8
from safe_dtype.models.block_layout import (
    Layout,
    blocks_of,
    codes_of,
    lay_out_in_codes,
    lay_out_narrow,
    narrow_of,
    take_back,
)

pytestmark = MARKS

BF16, FP32 = torch.bfloat16, torch.float32

LAYOUTS: dict[str, Callable[[nn.Module], Layout]] = {
    "int8": lambda model: lay_out_in_codes(model, INT8),
    "int4": lambda model: lay_out_in_codes(model, INT4),
    "narrow": lambda model: lay_out_narrow(model, BF16),
}


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    """How weights are held."""
    return str(request.param)


@pytest.fixture(scope="module")
def folder(layout: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a tied Qwen3 is saved: in bfloat16, or its numbers in float32."""
    make = cast_up if layout == "narrow" else save
    return make("qwen3-tied", tmp_path_factory.mktemp(layout))


@pytest.fixture
def plain(folder: Path) -> Any:
    """The model as it is loaded."""
    return load(folder)


@pytest.fixture
def model(folder: Path, layout: str) -> Any:
    """The same one, in the layout."""
    model = load(folder)
    assert LAYOUTS[layout](model).modules == 15
    return model


def is_held(module: nn.Module) -> bool:
    """Whether a module multiplies by codes or in 16 bit."""
    return codes_of(module) is not None or narrow_of(module) is not None


def held(model: nn.Module) -> int:
    """Return how many modules do."""
    return sum(map(is_held, model.modules()))


def test_state_and_files(model: Any, plain: Any, tmp_path: Path) -> None:
    """State dict and saved files have the bits of the checkpoint, and nothing of what is held."""
    state = model.state_dict()
    assert list(state) == list(plain.state_dict())
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.state_dict().items())
    model.save_pretrained(tmp_path / "held")
    plain.save_pretrained(tmp_path / "plain")
    for file in (tmp_path / "plain").iterdir():
        assert (tmp_path / "held" / file.name).read_bytes() == file.read_bytes(), file.name
    assert held(model) == 15


def test_lookups_keep_their_bits(model: Any, plain: Any) -> None:
    """An embedding that shares its weight with the head returns what it would without a layout."""
    assert is_held(model.lm_head)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = torch.tensor([[0, 999, 5]])
    assert torch.equal(model.model.embed_tokens(ids), plain.model.embed_tokens(ids))


def test_taking_back(model: Any, plain: Any, layout: str) -> None:
    """Without what is held it is the model of its files, bit for bit."""
    assert take_back(model) == (16 if layout == "narrow" else 15)  # an exact weight is looked up in as well
    assert held(model) == 0
    assert torch.equal(logits(model), logits(plain))


@pytest.mark.parametrize("second", LAYOUTS)
def test_a_second_layout(model: Any, second: str) -> None:
    """What is laid out is not laid out again."""
    assert LAYOUTS[second](model).modules == 0
    assert held(model) == 15
    assert not any(blocks_of(one) for one in model.modules())


def _pickled(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("made", [copy.deepcopy, _pickled])
def test_copies_are_plain(model: Any, plain: Any, made: Callable[[Any], Any]) -> None:
    """A copy has the weights of the files alone."""
    copied = made(model)
    assert (held(copied), held(model)) == (0, 15)
    assert torch.equal(logits(copied), logits(plain))


CHANGES: dict[str, Callable[[Any], object]] = {
    "to": lambda model: model.to(FP32 if model.dtype == BF16 else BF16),
    "half": lambda model: model.half(),
    "moved-to-a-list": lambda model: model.load_state_dict(
        {name: one + 1 for name, one in model.state_dict().items()}
    ),
    "all-written": lambda model: [one.data.mul_(-1) for one in model.parameters()],
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights(change: str, model: Any, plain: Any) -> None:
    """A cast, and whatever is written to the weights, is computed with at the next step, from the plain weights."""
    CHANGES[change](model)
    CHANGES[change](plain)
    assert torch.equal(logits(model), logits(plain))
    assert held(model) == 0


def test_a_merged_adapter(model: Any, plain: Any) -> None:
    """What is merged is merged into the weights of the files, in all their bits, and those are not held otherwise any more."""
    config = peft.LoraConfig(target_modules=["up_proj", "q_proj"], init_lora_weights=False, r=4)
    merged = []
    for base in (model, plain):
        torch.manual_seed(0)
        merged.append(peft.get_peft_model(base, config).eval().merge_and_unload())
    assert all(torch.equal(one, other) for one, other in zip(*(one.parameters() for one in merged), strict=True))
    logits(merged[0])
    assert not is_held(merged[0].model.layers[0].mlp.up_proj)
    assert is_held(merged[0].lm_head)  # no page of its weight holds a part of one that was merged into


@pytest.mark.parametrize("reentrant", [None, True, False], ids=["plain", "checkpoints", "checkpoints-anew"])
def test_training(model: Any, plain: Any, *, reentrant: bool | None) -> None:
    """A step of training is that of the plain model, bit for bit, and lets go of what is held; also with checkpoints of gradients."""
    losses = []
    for one in (model, plain):
        one.train()
        if reentrant is not None:
            one.gradient_checkpointing_enable({"use_reentrant": reentrant})
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        losses.append(one(input_ids=IDS, labels=IDS, use_cache=False).loss)
        losses[-1].backward()
        optimizer.step()
        one.eval()
    assert torch.equal(*losses)
    assert held(model) == 0
    assert torch.equal(logits(model), logits(plain))
