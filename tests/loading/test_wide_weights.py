"""A model in float16 whose files hold, in float32, what float16 does not reach."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import TINY

from safe_dtype import FLOAT16, SafeAutoModelForCausalLM, plan_of, report
from safe_dtype.checkpoints.weight_files import mark_weight_files
from safe_dtype.facts import Where
from safe_dtype.loading.wide_weights import keep_out_of_range
from safe_dtype.models.origin import Origin, keep_origin

IDS = torch.arange(3, 9)[None]
NORM = "model.layers.0.post_attention_layernorm.weight"
Change = Callable[[dict[str, torch.Tensor]], Any]

pytestmark = pytest.mark.filterwarnings("ignore:float16 was asked for")


def load(folder: Path, dtype: str = "float16", **more: Any) -> Any:
    """Load with us."""
    return SafeAutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **more)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[Change], Path]:
    """Return a function that gives a float16 checkpoint with some changed tensors."""

    def make(change: Change) -> Path:
        made = TINY["qwen3"].save(tmp_path, torch.float16)
        tensors = load_file(made / "model.safetensors")
        change(tensors)
        save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
        return made

    return make


@pytest.mark.parametrize("value", [1e5, 1e-7])
def test_a_norm_stays_in_float32(value: float, folder: Callable[[Change], Path]) -> None:
    """Its values are those of the file, the rest is in float16, and the results are those of float32."""
    norm = torch.full((32,), 0.5)
    norm[3] = value
    norm = norm if value > 1 else torch.full((32,), value)
    made = folder(lambda tensors: tensors.update({NORM: norm}))
    model = load(made)
    assert torch.equal(model.get_parameter(NORM), norm)
    assert {one.dtype for name, one in model.named_parameters() if name != NORM} == {torch.float16}
    assert report(model).islands == (NORM.removesuffix(".weight"),)
    reference: Any = transformers.AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    with torch.no_grad():
        wanted, now = reference(IDS).logits, model(IDS).logits
    torch.testing.assert_close(now.float(), wanted, rtol=0.05, atol=0.05)


def test_it_is_saved_as_it_was(folder: Callable[[Change], Path], tmp_path: Path) -> None:
    """`save_pretrained` writes the same mixture again."""
    made = folder(lambda tensors: tensors.update({NORM: torch.full((32,), 1e5)}))
    load(made).save_pretrained(tmp_path / "again")
    for name, tensor in load_file(tmp_path / "again" / "model.safetensors").items():
        wanted = load_file(made / "model.safetensors")[name]
        assert tensor.dtype == wanted.dtype, name
        assert torch.equal(tensor, wanted), name


def test_tied_weights(folder: Callable[[Change], Path]) -> None:
    """Where such a weight cannot be by itself in float32, the model is, with a warning that names it."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].float()
        tensors["model.embed_tokens.weight"][5, 5] = 1e5

    made = folder(change)
    with pytest.warns(UserWarning, match=r"does not reach model.embed_tokens.weight. It is in float32 now"):
        model = load(made)
    assert model.dtype == torch.float32
    assert plan_of(model).storage.name == "float32"
    assert torch.equal(model.lm_head.weight, load_file(made / "model.safetensors")["model.embed_tokens.weight"])


def test_in_strict_mode_nothing_is_changed(folder: Callable[[Change], Path]) -> None:
    """A warning says that the results may be wrong, and why."""
    made = folder(lambda tensors: tensors.update({NORM: torch.full((32,), 1e5)}))
    with pytest.warns(UserWarning, match=r"post_attention_layernorm.weight reaches 100,000"):
        model = load(made, policy="strict")
    assert model.get_parameter(NORM).isinf().all()
    assert model.get_parameter(NORM).dtype == torch.float16


def test_a_dtype_of_its_own_choice(folder: Callable[[Change], Path]) -> None:
    """Without an order the values are there as well, whatever is planned."""
    made = folder(lambda tensors: tensors.update({NORM: torch.full((32,), 1e5)}))
    for policy in ("auto", "prefer=memory"):
        model = load(made, dtype="auto", policy=policy)
        norm = model.get_parameter(NORM)
        assert norm.dtype != torch.float16
        torch.testing.assert_close(norm.float(), torch.full((32,), 1e5), rtol=torch.finfo(norm.dtype).eps, atol=0.0)


def test_float32_norms_in_range(folder: Callable[[Change], Path]) -> None:
    """What float16 reaches is in float16, rounded, and the plan tells."""
    made = folder(lambda tensors: tensors.update({NORM: torch.rand(32) + 0.5}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "float16 was asked for")
        model = load(made)
    assert model.get_parameter(NORM).dtype == torch.float16
    rounded = plan_of(model).rounded
    assert rounded is not None
    assert rounded.tensors == 1


def test_small_weights_of_other_files(tmp_path: Path) -> None:
    """In a checkpoint that is float32 as a whole small numbers are rounded, as the order is; large ones stay."""
    made = TINY["qwen3"].save(tmp_path, torch.float32)
    tensors = load_file(made / "model.safetensors")
    small = NORM.replace("layers.0", "layers.1")
    tensors |= {NORM: torch.full((32,), 1e5), small: torch.full((32,), 1e-6)}
    save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
    model = transformers.AutoModelForCausalLM.from_pretrained(made, dtype=torch.float16)
    plan = replace(plan_of(load(made, "float32")), storage=FLOAT16, compute=FLOAT16)
    keep_origin(model, Origin(plan, type(model), str(made), {}, mark_weight_files(Where(made))))
    assert not keep_out_of_range(model, plan)
    assert model.get_parameter(NORM).dtype == torch.float32
    assert model.get_parameter(small).dtype == torch.float16
