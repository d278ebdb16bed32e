"""A rescaled model is saved as what it was made of, and plain transformers loads it."""

from __future__ import annotations

import copy
import gc
import inspect
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from engineered import KINDS, prompts, saved
from rescaling.gauges_by_hand import residual
from torch import Tensor, nn
from transformers import PreTrainedModel

from safe_dtype import SafeAutoModel, report
from safe_dtype.errors import SafeDtypeWarning
from safe_dtype.facts import Part, Rescale
from safe_dtype.models.saving.late_tensor import made
from safe_dtype.rescaling import Fold, keep_rescaled, rescaled_of
from safe_dtype.rescaling.folding.own_weights import own_weights
from safe_dtype.rescaling.folding.prove import Effect
from safe_dtype.rescaling.folding.rescale_file import FILE, Stored
from safe_dtype.rescaling.folding.save import save_as_it_was


@pytest.fixture(
    params=["qwen3", "gemma3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt_oss", "t5"))]
)
def family(request: pytest.FixtureRequest) -> str:
    """Return a family whose residual stream leaves float16's range."""
    return str(request.param)


def rescued(family: str, folder: Path) -> Any:
    """Return the model of `folder` in float16, rescaled."""
    model = SafeAutoModel.from_pretrained(folder, dtype="float16")
    assert report(model).rescale is not None
    return model


def plain(family: str, folder: Path) -> Any:
    """Return what plain transformers makes of `folder`."""
    return KINDS[family].auto.from_pretrained(folder, dtype="auto").eval()


def state(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of what is in memory."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict(keep_vars=True).items()}


def test_every_bit_comes_back(family: str, tmp_path: Path) -> None:
    """Weights that nobody changed are saved as they came, in the dtype they came in; the config says so."""
    before = saved(family, tmp_path / "before")
    rescued(family, before).save_pretrained(tmp_path / "after")
    first, second = plain(family, before), plain(family, tmp_path / "after")
    assert second.dtype == torch.bfloat16
    assert all(torch.equal(one, second.state_dict()[name]) for name, one in first.state_dict().items())
    stored = Stored.from_dict(json.loads((tmp_path / "after" / FILE).read_text()))
    assert stored.rescale is not None
    assert stored.rescale.shifts[0][1] > 0


def test_saving_changes_nothing(tmp_path: Path) -> None:
    """After it has been saved the model is in float16 and computes what it did; its config can be saved by itself."""
    model = rescued("qwen3", saved("qwen3", tmp_path / "before"))
    batch = prompts("qwen3", count=1, tokens=16, seed=1)[0]
    before, results = state(model), model(**batch).logits
    model.save_pretrained(tmp_path / "after")
    assert model.dtype == model.config.dtype == torch.float16
    assert all(torch.equal(one, before[name]) for name, one in state(model).items())
    assert torch.equal(model(**batch).logits, results)
    model.config.save_pretrained(tmp_path / "config")
    assert "save_pretrained" not in (tmp_path / "config" / "config.json").read_text()


def test_what_was_changed_is_kept(tmp_path: Path) -> None:
    """A weight that was changed after loading, an adapter merged, say, is multiplied back, in the checkpoint's dtype."""
    model = rescued("qwen3", saved("qwen3", tmp_path / "before"))
    exponent = report(model).rescale.exponents()[Part.WEIGHT, "model.layers.0.mlp.down_proj.weight", None]
    assert exponent < 0
    changed = model.model.layers[0].mlp.down_proj.weight
    with torch.no_grad():
        changed.mul_(1.25)
    model.save_pretrained(tmp_path / "after")
    found = plain("qwen3", tmp_path / "after").model.layers[0].mlp.down_proj.weight
    assert torch.equal(found, (changed.detach().float() * 2.0**-exponent).bfloat16())


def test_saved_without_its_files(tmp_path: Path) -> None:
    """Where the files are gone the weights are multiplied back: those of the checkpoint, but for what float16 lost."""
    folder = saved("qwen3", tmp_path / "before")
    model, original = rescued("qwen3", folder), plain("qwen3", folder)
    folder.rename(tmp_path / "elsewhere")
    model.save_pretrained(tmp_path / "after")
    loaded = plain("qwen3", tmp_path / "after")
    assert loaded.dtype == torch.bfloat16
    for name, one in original.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], one, rtol=0, atol=2.0**-16)


def test_sharded_and_with_a_state_dict(tmp_path: Path) -> None:
    """Shards and a state dict of the caller's own, as a Trainer passes, make no difference."""
    folder = saved("llama", tmp_path / "before")
    model = rescued("llama", folder)
    with pytest.warns(SafeDtypeWarning, match="its state dict is read"):
        state_dict = model.state_dict()
    model.save_pretrained(tmp_path / "after", state_dict=state_dict, max_shard_size="200KB")
    assert (tmp_path / "after" / "model.safetensors.index.json").is_file()
    loaded = plain("llama", tmp_path / "after")
    assert all(
        torch.equal(one, loaded.state_dict()[name]) for name, one in plain("llama", folder).state_dict().items()
    )


@pytest.mark.parametrize("with_state", [False, True])
def test_positional_arguments(with_state: bool, tmp_path: Path) -> None:
    """`is_main_process` and a state dict may be passed by position, as plain transformers takes them."""
    folder = saved("llama", tmp_path / "before")
    model = rescued("llama", folder)
    passed = (dict(model.named_parameters()),) if with_state else (None, False, "200KB")
    model.save_pretrained(tmp_path / "after", True, *passed)
    model.save_pretrained(tmp_path / "other rank", False, *passed)
    assert not [*(tmp_path / "other rank").glob("*.safetensors")]
    loaded = plain("llama", tmp_path / "after")
    assert all(
        torch.equal(one, loaded.state_dict()[name]) for name, one in plain("llama", folder).state_dict().items()
    )
    with pytest.raises(TypeError, match="multiple values"):
        model.save_pretrained(tmp_path / "twice", True, None, is_main_process=True)


def test_without_a_trace(tmp_path: Path) -> None:
    """With the last rescued model `save_pretrained` is what it was; until then a copy of one needs it."""
    gc.collect()
    before = PreTrainedModel.__dict__["save_pretrained"]
    signature = inspect.signature(PreTrainedModel.save_pretrained)
    folder = saved("qwen3", tmp_path / "before")
    model = rescued("qwen3", folder)
    assert inspect.signature(PreTrainedModel.save_pretrained) == signature
    copied = copy.deepcopy(model)
    del model
    gc.collect()
    assert_saved_as(folder, copied, tmp_path / "copied")
    del copied
    gc.collect()
    assert PreTrainedModel.__dict__["save_pretrained"] is before


def test_read_from_a_pickle(tmp_path: Path) -> None:
    """A rescaled model that is read from a pickle is saved as it was, though nothing was rescued in that process."""
    gc.collect()
    before = PreTrainedModel.__dict__["save_pretrained"]
    folder = saved("qwen3", tmp_path / "before")
    model = plain("qwen3", folder)
    fold = Fold(model)
    fold.move_to(Rescale(((residual(model), 6),)))
    keep_rescaled(model, fold, Effect(bitwise=True))
    save_as_it_was(model)
    pickled = pickle.dumps(model)
    del model, fold
    gc.collect()
    assert PreTrainedModel.__dict__["save_pretrained"] is before
    assert_saved_as(folder, pickle.loads(pickled), tmp_path / "pickled")
    gc.collect()
    assert PreTrainedModel.__dict__["save_pretrained"] is before


def assert_saved_as(folder: Path, model: Any, again: Path) -> None:
    """Assert that `model` is saved with the weights of `folder`, to what float16 holds of them."""
    model.save_pretrained(again)
    first, second = plain("qwen3", folder).state_dict(), plain("qwen3", again).state_dict()
    for name, weight in first.items():
        torch.testing.assert_close(second[name].float(), weight.float(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("files", ["there", "gone"])
def test_every_bit_comes_back_after_a_raise(dtype: torch.dtype, files: str, tmp_path: Path) -> None:
    """Bits that float16 lost when the scale was raised are saved as well: as loaded where the files are gone."""
    before = saved("qwen3", tmp_path / "before", dtype=dtype, max_shard_size="300KB")
    model = SafeAutoModel.from_pretrained(before, dtype="float16")
    if dtype == torch.float16:  # nobody plans for that one: it is rescaled in float16, when it fails
        fold = Fold(model)
        fold.move_to(Rescale(((residual(model), 6),)))
        keep_rescaled(model, fold, Effect(bitwise=True), loaded=Rescale(()))
        save_as_it_was(model)
    rescaled = rescaled_of(model)
    assert rescaled is not None
    if files == "there":
        expected = dict(plain("qwen3", before).state_dict())
    else:  # what loading rounded is gone with them, and nothing more is lost
        shutil.rmtree(before)
        expected = made(own_weights(model, state(model)))
    rescaled.raise_bits(4)
    assert max(rescaled.fold.losses().values()) > 0
    model.save_pretrained(tmp_path / "after")
    second = plain("qwen3", tmp_path / "after").state_dict()
    assert all(torch.equal(one.float(), second[name].float()) for name, one in expected.items())
