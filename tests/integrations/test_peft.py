"""PEFT: adapters of another dtype than the base, several of them, and failures in the base and in an adapter."""

from __future__ import annotations

import gc
from typing import Any

import peft
import pytest
import torch
from guarding.generators import tiny

from safe_dtype import guard, report
from safe_dtype.testing import fault

BF16, FP32 = torch.bfloat16, torch.float32
IDS = torch.arange(3, 9)[None]
NEAR = {"rtol": 0, "atol": 1e-2}  # where a part stays in bfloat16


def adapted(base: torch.dtype, adapter: torch.dtype, *, names: tuple[str, ...] = ("default",)) -> Any:
    """Return a tiny model in `base` with LoRA adapters in `adapter` that say something."""
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny().to(BF16).to(base), lora, adapter_name=names[0], autocast_adapter_dtype=False)
    for name in names[1:]:
        model.add_adapter(name, lora)
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = (0.3 * torch.randn(weight.shape, generator=generator)).to(BF16).to(adapter)
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> Any:
    """Return those of six tokens, in float32."""
    return model(input_ids=IDS).logits.float()


DTYPES = pytest.mark.parametrize(("base", "adapter"), [(BF16, BF16), (BF16, FP32), (FP32, BF16)], ids=str)


@DTYPES
def test_healthy(base: torch.dtype, adapter: torch.dtype) -> None:
    """While all is well the bits are those of plain PEFT, and nothing is cast."""
    model = guard(adapted(base, adapter))
    assert torch.equal(logits(model), logits(adapted(base, adapter)))
    assert {weight.dtype for weight in model.parameters()} == {base, adapter}
    assert report(model).events == ()


@pytest.mark.parametrize(
    ("base", "adapter", "part"),
    [
        (BF16, BF16, "base_layer"),
        (BF16, BF16, "lora_B.default"),
        (BF16, FP32, "base_layer"),
        (FP32, BF16, "lora_B.default"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["nan", "not_implemented"])
def test_rescued(base: torch.dtype, adapter: torch.dtype, part: str, kind: str) -> None:
    """A failure of a layer in 16 bit, of the base or of the adapter, ends in the numbers of float32."""
    model = guard(adapted(base, adapter))
    name = f"base_model.model.model.layers.1.mlp.down_proj.{part}"
    with fault(model, name, kind) as put:
        found = logits(model)
    assert put.fired
    assert report(model).events
    torch.testing.assert_close(found, logits(adapted(FP32, FP32)), **NEAR)


def test_switched_after_a_failure() -> None:
    """The other adapter, set after one has failed and the model was made wider, gives its own numbers."""
    names = ("first", "second")
    model, wide = guard(adapted(BF16, BF16, names=names)), adapted(FP32, FP32, names=names)
    with fault(model, "base_model.model.model.layers.1.mlp.down_proj.lora_B.first", "nan"):
        first = logits(model)
    torch.testing.assert_close(first, logits(wide), **NEAR)
    for one in (model, wide):
        one.set_adapter("second")
    torch.testing.assert_close(logits(model), logits(wide), **NEAR)
    assert (first - logits(model)).abs().max() > 10 * NEAR["atol"]
    with model.disable_adapter(), wide.disable_adapter():
        torch.testing.assert_close(logits(model), logits(wide), **NEAR)


def test_generates() -> None:
    """A missing kernel in the third step of a generation: the text is the one that float32 writes from there."""
    model, wide = guard(adapted(BF16, BF16)), adapted(FP32, FP32)
    with fault(model, "base_model.model.model.layers.1.mlp.down_proj.base_layer", "cublas", call=2):
        text = model.generate(input_ids=IDS, max_new_tokens=6, do_sample=False)
    (event,) = report(model).events
    until = IDS.shape[1] + event.step
    rest = wide.generate(input_ids=text[:, :until], max_new_tokens=6 - event.step, do_sample=False)
    assert torch.equal(rest, text)


def overflowing() -> Any:
    """Return a model in float16 whose base and adapter are within its range, and their merge is not."""
    model = adapted(torch.float16, torch.float16)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data *= 1000
    return model


@pytest.mark.parametrize("around", ["adapted", "base"])
def test_a_merge_that_overflows(around: str, caplog: pytest.LogCaptureFixture) -> None:
    """The log names the weights that the merge has spoiled, and how to merge, whether base or adapted model was guarded."""
    model = overflowing()
    guard(model if around == "adapted" else model.base_model.model)
    merged = model.merge_and_unload()
    del model
    gc.collect()
    assert not logits(merged).isfinite().all()
    (line,) = (record.getMessage() for record in caplog.records if "handed on" in record.getMessage())
    assert "weight in " in line
    assert "hold NaN or Inf" in line
    assert "merge in float32" in line


def test_merged_and_unloaded() -> None:
    """The base that the merge returns is guarded as the adapted model was."""
    merged = guard(adapted(BF16, BF16)).merge_and_unload()
    gc.collect()
    wide = adapted(FP32, FP32).merge_and_unload()
    with fault(merged, "model.layers.1.mlp.down_proj", "nan") as put:
        found = logits(merged)
    assert put.fired
    assert report(merged).events
    torch.testing.assert_close(found, logits(wide), rtol=0, atol=3e-2)  # merged in bfloat16
