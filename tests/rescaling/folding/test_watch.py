"""Changes of a rescaled model that are noticed as they happen: adapters are followed, and nothing is process-wide."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from engineered import engineered, prompts
from rescaling.gauges_by_hand import residual
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from safe_dtype.errors import SafeDtypeWarning
from safe_dtype.facts import Rescale
from safe_dtype.numerics import running_in
from safe_dtype.rescaling import Fold, fold_in, keep_rescaled


def logits(model: Any, family: str) -> Tensor:
    """Return what `model` says of a prompt that makes it overflow in float16."""
    with torch.inference_mode():
        found: Tensor = model(**prompts(family, count=1, tokens=24, seed=3)[0]).logits
    return found


def rescaled(bits: int = 6) -> tuple[Any, Fold]:
    """Return a Llama with its hidden states smaller by so many bits, and the fold."""
    model = engineered("llama")
    kept = keep_rescaled(model, *fold_in(model, Rescale(((residual(model), bits),))))
    return model, kept.fold


def lora(model: Any, **given: Any) -> Any:
    """Return `model` with a random LoRA adapter on what the residual gauge moves, and on something else."""
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["o_proj", "down_proj", "q_proj"], r=4, init_lora_weights=False, **given)
    return peft.get_peft_model(model, config).eval()


@pytest.mark.parametrize("given", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_adapter_that_comes_later(given: dict[str, Any], tmp_path: Path) -> None:
    """An adapter loaded into a rescaled model does what it does to the model as it was."""
    made = lora(engineered("llama"), **given)
    made.save_pretrained(tmp_path)
    expected = logits(made, "llama")
    model, fold = rescaled()
    adapted = peft.PeftModel.from_pretrained(model, tmp_path).eval()
    assert not fold.is_stale()
    torch.testing.assert_close(logits(adapted, "llama"), expected, rtol=1e-5, atol=1e-4)


def test_adapter_merged_and_gone() -> None:
    """Merged into the weights or taken off again, an adapter leaves the results that it should."""
    plain = logits(engineered("llama"), "llama")
    expected = logits(lora(engineered("llama")).merge_and_unload(), "llama")
    for leave, wanted in ((lambda adapted: adapted.merge_and_unload(), expected), (lambda one: one.unload(), plain)):
        model, fold = rescaled()
        left = leave(lora(model))
        assert fold.moved(), "the weights are moved again"
        torch.testing.assert_close(logits(left, "llama"), wanted, rtol=1e-5, atol=1e-4)


def test_weight_of_the_adapters_own(tmp_path: Path) -> None:
    """Where an adapter brings a whole weight for a moved one, nothing is rescaled any more."""
    config = peft.LoraConfig(target_modules=["q_proj"], r=4, modules_to_save=["down_proj"])
    made = peft.get_peft_model(engineered("llama"), config).eval()
    with torch.no_grad():
        made.get_base_model().model.layers[2].mlp.down_proj.weight.mul_(1.5)
    made.save_pretrained(tmp_path)
    expected = logits(made, "llama")
    model, fold = rescaled()
    with pytest.warns(SafeDtypeWarning, match="'down_proj' is replaced"):
        adapted = peft.PeftModel.from_pretrained(model, tmp_path).eval()
    assert fold.rescale == Rescale(())
    assert torch.equal(logits(adapted, "llama"), expected)


def test_nothing_is_process_wide() -> None:
    """A rescaled model that comes, is followed and goes leaves torch's hooks of the whole process alone."""
    before = dict(torch_modules._global_module_registration_hooks)
    model, fold = rescaled()
    lora(model)
    assert not fold.is_stale()
    assert torch_modules._global_module_registration_hooks == before


def test_collected_while_torch_compiles() -> None:
    """A rescaled model that is garbage may be collected at any moment of a compilation that builds modules."""

    def build(x: Tensor) -> Tensor:
        return nn.Sequential(nn.Identity(), nn.Identity())(x) + 1  # type: ignore[no-any-return]

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
        gc.collect()
        return graph.forward

    gc.disable()
    try:
        model, _ = rescaled()
        model.__dict__["itself"] = [model]
        del model
        compiled = torch.compile(build, backend=backend, fullgraph=True)
        assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 2.0))
    finally:
        gc.enable()


def test_copy_is_watched() -> None:
    """A copy of a rescaled model follows its own adapter, before it is called for the first time."""
    model, fold = rescaled()
    plain = logits(model, "llama")
    copied = copy.deepcopy(model)
    expected = logits(lora(engineered("llama")), "llama")
    torch.testing.assert_close(logits(lora(copied), "llama"), expected, rtol=1e-5, atol=1e-4)
    assert not fold.is_stale()
    assert torch.equal(logits(model, "llama"), plain)


def test_a_run_in_another_dtype() -> None:
    """Weights that only look rounded, because the run is in another dtype, are not taken for written into."""
    model = engineered("llama").half()
    proof = fold_in(model, Rescale(((residual(model), 6),)), computing=running_in(torch.float32, torch.float16))
    kept = keep_rescaled(model, *proof)
    with running_in(torch.bfloat16, torch.float16):
        for _ in range(2):
            logits(model, "llama")
    assert kept.rescale.shifts
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.mul_(1.5)
    with pytest.warns(SafeDtypeWarning, match="were written into"), running_in(torch.bfloat16, torch.float16):
        logits(model, "llama")


def test_the_address_of_a_former_weight() -> None:
    """A weight in another dtype and back, at the address that it had, is the same weight."""
    model = engineered("llama").half()
    proof = fold_in(model, Rescale(((residual(model), 6),)), computing=running_in(torch.float32, torch.float16))
    kept = keep_rescaled(model, *proof)
    weight = model.model.layers[0].self_attn.o_proj.weight
    for _ in range(50):
        logits(model, "llama")
        address = weight.data_ptr()
        weight.data = weight.data.float()
        weight.data = weight.data.half()  # where the allocator likes to, at the former address
        if weight.data_ptr() == address:
            break
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits(model, "llama")
    assert kept.rescale.shifts


def test_after_an_interrupt() -> None:
    """A model whose call was ended by Ctrl-C is looked at in the next one."""
    model = engineered("llama").half()
    proof = fold_in(model, Rescale(((residual(model), 6),)), computing=running_in(torch.float32, torch.float16))
    keep_rescaled(model, *proof)
    logits(model, "llama")

    class Cut(type(model.lm_head)):  # type: ignore[misc]  # made from a value
        def forward(self, _: Tensor) -> Tensor:
            raise KeyboardInterrupt

    plain, model.lm_head.__class__ = type(model.lm_head), Cut
    with pytest.raises(KeyboardInterrupt):
        logits(model, "llama")
    model.lm_head.__class__ = plain
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.mul_(1.5)
    with pytest.warns(SafeDtypeWarning, match="were written into"):
        logits(model, "llama")
